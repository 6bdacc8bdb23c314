"""Makes the files that the test Internet's web servers have: a git repository, a Python package and a Node package."""
import base64, hashlib, io, json, os, subprocess, sys, tarfile, zipfile

root = sys.argv[1]


def put(path, data):
    path = os.path.join(root, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def git(*arguments, cwd):
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "e2e", f"GIT_{who}_EMAIL": "e2e@asbx.test", f"GIT_{who}_DATE": "2026-01-01T00:00:00Z"}
    subprocess.run(["git", *arguments], cwd=cwd, env=env, check=True, stdout=subprocess.DEVNULL)


work = os.path.join(root, "work")
os.makedirs(work)
git("init", "-q", "-b", "main", ".", cwd=work)
put("work/hello.txt", b"hello from git\n")
git("add", ".", cwd=work)
git("commit", "-q", "-m", "first", cwd=work)
git("clone", "-q", "--bare", work, os.path.join(root, "repo.git"), cwd=root)
git("update-server-info", cwd=os.path.join(root, "repo.git"))

wheel, name = io.BytesIO(), "asbxpkg-1.0-py3-none-any.whl"
files = {
    "asbxpkg.py": b"text = 'hello from pip'\n",
    "asbxpkg-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: asbxpkg\nVersion: 1.0\n",
    "asbxpkg-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: e2e\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
record = "".join(f"{path},,\n" for path in [*files, "asbxpkg-1.0.dist-info/RECORD"])
with zipfile.ZipFile(wheel, "w") as archive:
    for path, data in {**files, "asbxpkg-1.0.dist-info/RECORD": record.encode()}.items():
        archive.writestr(path, data)
put(f"files/{name}", wheel.getvalue())
put("simple/asbxpkg/index.html", f'<html><body><a href="/files/{name}">{name}</a></body></html>'.encode())

package = {"name": "asbxnode", "version": "1.0.0", "main": "index.js"}
ball = io.BytesIO()
with tarfile.open(fileobj=ball, mode="w:gz") as archive:
    for path, data in {"package/package.json": json.dumps(package).encode(), "package/index.js": b"module.exports = 'hello from npm'\n"}.items():
        info = tarfile.TarInfo(path)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
data = ball.getvalue()
put("asbxnode/-/asbxnode-1.0.0.tgz", data)
integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
dist = {"tarball": "https://one.asbx.test/asbxnode/-/asbxnode-1.0.0.tgz", "integrity": integrity}
put("asbxnode/index.html", json.dumps({
    "name": "asbxnode", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {**package, "dist": dist}},
}).encode())
