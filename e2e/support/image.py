"""image.py FROM TO: an image archive of Docker's form like FROM, but hostile.

Options: --link PATH=TARGET   a symbolic link in the place of PATH
         --volume PATH        a volume that the image declares
"""
import argparse, hashlib, io, json, tarfile

options = argparse.ArgumentParser()
options.add_argument("source")
options.add_argument("target")
options.add_argument("--link", action="append", default=[])
options.add_argument("--volume", action="append", default=[])
options = options.parse_args()

layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w") as archive:
    for link in options.link:
        path, target = link.split("=")
        path = path.lstrip("/")
        # What the layers below have there goes first.
        for name, kind in ((".wh." + path, tarfile.REGTYPE), (path, tarfile.SYMTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target if kind == tarfile.SYMTYPE else ""
            archive.addfile(entry)
layer = layer.getvalue()

with tarfile.open(options.source) as source, tarfile.open(options.target, "w") as target:
    manifest = json.load(source.extractfile("manifest.json"))
    config = json.load(source.extractfile(manifest[0]["Config"]))
    config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(layer).hexdigest())
    config.get("history", []).append({"created_by": "image.py"})
    config["config"]["Volumes"] = {path: {} for path in options.volume}
    for name in manifest[0]["Layers"]:
        entry = source.getmember(name)
        target.addfile(entry, source.extractfile(entry))
    config = json.dumps(config).encode()
    manifest[0]["Config"], manifest[0]["Layers"] = "config.json", [*manifest[0]["Layers"], "hostile.tar"]
    for name, data in (("hostile.tar", layer), ("config.json", config), ("manifest.json", json.dumps(manifest).encode())):
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        target.addfile(entry, io.BytesIO(data))
