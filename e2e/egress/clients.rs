//! Programs as they are, with no setting that knows of the sandbox: the allowed name works, another fails soon and clearly.
use serde_json::{Value, json};

use super::{host, tried};
use crate::support::{environment, shared};

/// Runs every client against the allowed name and the other one. `{}` stands for the name.
const CLIENTS: &str = r#"
import subprocess
os.chdir("/tmp")
os.environ.update(HOME="/tmp", SSL_CERT_FILE=CA, CURL_CA_BUNDLE=CA, GIT_SSL_CAINFO=CA, NODE_EXTRA_CA_CERTS=CA, PIP_CERT=CA,
    REQUESTS_CA_BUNDLE=CA, npm_config_update_notifier="false", npm_config_fetch_retries="0", GIT_TERMINAL_PROMPT="0")
def run(*command, limit=60):
    p = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=limit, text=True)
    if p.returncode:
        raise ValueError(f"exit code {p.returncode}: {p.stdout[-400:]}")
    return p.stdout[-400:]
def write(path, text):
    with open(path, "w") as f:
        f.write(text)
write("C.java", '''import java.net.*; import java.net.http.*;
class C { public static void main(String[] a) throws Exception {
  var r = HttpClient.newHttpClient().send(HttpRequest.newBuilder(URI.create(a[0])).timeout(java.time.Duration.ofSeconds(10)).build(),
    HttpResponse.BodyHandlers.ofString()); System.out.print(r.body()); } }''')
run("keytool", "-importcert", "-noprompt", "-storepass", "changeit", "-keystore", "/tmp/ks", "-file", CA, "-alias", "e2e")
write("aio.py", '''import aiohttp, asyncio, ssl, sys
async def main():
    context = ssl.create_default_context(cafile="/probe/ca.pem")
    async with aiohttp.ClientSession() as s:
        async with s.get(sys.argv[1], ssl=context) as r: print(await r.text())
asyncio.run(main())''')
clients = {
    "curl": lambda n: run("curl", "-sS", "--max-time", "10", f"https://{n}/x"),
    "wget": lambda n: run("wget", "-q", "-O-", "-T", "10", "-t", "1", f"--ca-certificate={CA}", f"https://{n}/x"),
    "git": lambda n: run("git", "clone", "-q", f"https://{n}/repo.git", f"repo-{n}") + run("cat", f"repo-{n}/hello.txt"),
    "pip": lambda n: run("pip", "install", "-q", "--retries", "0", "--timeout", "10", "--no-cache-dir", "--disable-pip-version-check",
        "--break-system-packages", "--target", f"pip-{n}", "--index-url", f"https://{n}/simple/", "asbxpkg") + run("cat", f"pip-{n}/asbxpkg.py"),
    "npm": lambda n: run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", f"npm-{n}", f"--registry=https://{n}/", "asbxnode")
        + run("cat", f"npm-{n}/node_modules/asbxnode/index.js"),
    "go": lambda n: run("go-client", f"https://{n}/x"),
    "java": lambda n: run("java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-Djavax.net.ssl.trustStore=/tmp/ks", "-Djavax.net.ssl.trustStorePassword=changeit", "C.java", f"https://{n}/x"),
    "requests": lambda n: run("python3", "-c", f"import requests; print(requests.get('https://{n}/x', timeout=10).text)"),
    "aiohttp": lambda n: run("python3", "aio.py", f"https://{n}/x"),
    "node": lambda n: run("node", "-e", f"fetch('https://{n}/x').then(r => r.text()).then(console.log, e => {{ console.error(e, e.cause); process.exit(1) }})"),
    "openssl": lambda n: run("sh", "-c", f"printf 'GET /x HTTP/1.1\\r\\nHost: {n}\\r\\nConnection: close\\r\\n\\r\\n' | openssl s_client -quiet -verify_return_error -CAfile {CA} -servername {n} -connect {n}:443 2>&1"),
}
"#;

const ALL: &str = r#"
for name, client in clients.items():
    trial(name, lambda: client("one.asbx.test"))
    trial(name + "-other", lambda: client("two.asbx.test"))
trial("redis", lambda: run("redis-cli", "-h", "one.asbx.test", "ping"))
trial("redis-other", lambda: run("redis-cli", "-h", "two.asbx.test", "ping"))
"#;

const NAMES: [&str; 11] =
    ["curl", "wget", "git", "pip", "npm", "go", "java", "requests", "aiohttp", "node", "openssl"];

fn run(name: &'static str, isolation: Value, names: &'static [&'static str]) {
    shared(name, move |test| async move {
        let Some(image) = environment().get("CLIENTS_IMAGE") else {
            panic!("CLIENTS_IMAGE is not set: scripts/clients-image builds it");
        };
        test.probe().await;
        test.add_to_probe("clients.py", &format!("from probe import *\n{CLIENTS}")).await;
        let only: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let script = format!(
            "from clients import *\nonly = {}\nclients = {{k: v for k, v in clients.items() if k in only}}\n{ALL}",
            json!(only)
        );
        let spec = json!({
            "image": image, "timeout": "7m", "isolation": isolation,
            "resources": {"memory": "768Mi", "cpu": "1", "pids": 200, "ephemeralStorage": "256Mi", "requests": {"cpu": "50m", "memory": "64Mi"}},
            "filesystem": {"mounts": [
                {"path": "/probe", "configMap": {"name": "probe"}},
                {"path": "/tmp", "readOnly": false, "emptyDir": {"sizeLimit": "200Mi"}},
            ]},
        });
        let redis = json!({"host": "one.asbx.test", "ports": [6379], "protocol": "TCP"});
        test.agent("agent", &script, &[host("one.asbx.test", &[80, 443]), redis], spec).await;
        let outcome =
            test.wait_status("agent", "an outcome", crate::support::secs(460), |s| s.outcome.clone()).await;
        let said = crate::support::agent::lines(&test.log("agent").await);
        assert_eq!(outcome.reason, "Completed", "{outcome:?} {said:#?}");
        let mut wrong = Vec::new();
        for name in names.iter().copied().chain(["redis"]) {
            let (done, value) = tried(&said, name);
            let text = value.as_str().unwrap_or_default();
            if !done || !(text.contains("hello") || text.contains("PONG")) {
                wrong.push(format!("{name} should work: {value}"));
            }
            let other = format!("{name}-other");
            let (done, value) = tried(&said, &other);
            let took = crate::support::agent::probe(&said, &other)["took"].as_f64().unwrap();
            if done || took > 20.0 {
                wrong.push(format!("{other} should fail soon: {value} after {took} s"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

#[test]
fn clients_work_unmodified() {
    run("clients", json!({}), &NAMES);
}

#[test]
fn clients_work_unmodified_in_a_user_namespace() {
    run("clients-userns", json!({"userNamespace": "Required"}), &NAMES);
}

#[test]
fn clients_work_unmodified_under_gvisor() {
    run("clients-gvisor", json!({"runtimeClassName": "gvisor"}), &NAMES);
}
