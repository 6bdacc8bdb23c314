//! The "Internet" of the end-to-end tests: on every address given a TCP echo (7000), a UDP echo (7001), a name server
//! (53), HTTP (80) and HTTPS (443) that answer with the address, the host and the server name asked. It runs in a network
//! namespace that the cluster's node routes to.
#![allow(clippy::print_stdout, reason = "a test server says on its output what it serves")]
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

mod certificates;
mod dns;

/// TCP port that sends back what it gets.
const TCP_ECHO: u16 = 7000;
/// UDP port that sends back what it gets.
const UDP_ECHO: u16 = 7001;
const HTTP: u16 = 80;
const HTTPS: u16 = 443;
/// Connections at one time, over all servers: some tests make as many as one sandbox may have.
const CONNECTIONS: usize = 2048;
/// Longest life of one connection.
const CONNECTION_LIFE: Duration = Duration::from_mins(5);
/// Longest request head, in bytes.
const HEAD: usize = 8 * 1024;

/// Serves echo, HTTP and HTTPS on addresses of this network namespace.
#[derive(Parser)]
struct Options {
    /// Addresses to serve; they must exist here.
    #[arg(required = true)]
    addresses: Vec<IpAddr>,
    /// Folder in which `ca.pem` (the CA of the HTTPS servers) and the ready file are written.
    #[arg(long)]
    state_dir: PathBuf,
    /// Name of the file that is written when every port is bound: JSON with `pid` and `addresses`.
    #[arg(long, default_value = "internet.ready")]
    ready_file: String,
    /// Name of the file that the CA's certificate is written to.
    #[arg(long, default_value = "ca.pem")]
    ca_file: String,
    /// Further names in the HTTPS certificate.
    #[arg(long, default_values_t = [String::from("*.asbx.test"), String::from("*.wild.asbx.test"), String::from("asbx.test")])]
    name: Vec<String>,
    /// Folder of files that the web servers have; every other path is answered with a greeting.
    #[arg(long)]
    files: Option<PathBuf>,
    /// A Redis server on the first address, where the machine has the program.
    #[arg(long)]
    redis: bool,
    /// Program that serves the files' `repo.git` by SSH (22) on the first address; its key is written to `ssh_host_key.pub`.
    #[arg(long, requires = "files")]
    git_ssh: Option<PathBuf>,
    /// End when standard input closes, so that the servers never outlive the tests that started them.
    #[arg(long)]
    while_stdin_open: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    match serve(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("e2e-internet: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    raise_descriptors()?;
    let tls = acceptor(&options)?;
    let files: Option<Arc<Path>> = options.files.clone().map(Into::into);
    let _redis = options.redis.then(|| redis(&options)).transpose()?;
    let _git = options.git_ssh.as_deref().map(|program| git_ssh(program, &options)).transpose()?;
    let zone = Arc::new(dns::Zone::default());
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    for address in &options.addresses {
        let listen = |port| TcpListener::bind(SocketAddr::new(*address, port));
        let (echo, http, https) = (listen(TCP_ECHO).await?, listen(HTTP).await?, listen(HTTPS).await?);
        let names = (listen(53).await?, UdpSocket::bind(dns::endpoint(*address)).await?);
        tokio::spawn(dns::datagrams(names.1, Arc::clone(&zone)));
        let zone = Arc::clone(&zone);
        tokio::spawn(accept(names.0, Arc::clone(&slots), move |stream| {
            dns::stream(stream, Arc::clone(&zone))
        }));
        let udp = UdpSocket::bind(SocketAddr::new(*address, UDP_ECHO)).await?;
        tokio::spawn(echo_datagrams(udp));
        tokio::spawn(accept(echo, Arc::clone(&slots), echo_stream));
        let plain = files.clone();
        tokio::spawn(accept(http, Arc::clone(&slots), move |stream| answer_plain(stream, plain.clone())));
        let (tls, files) = (tls.clone(), files.clone());
        tokio::spawn(accept(https, Arc::clone(&slots), move |stream| {
            answer_tls(stream, tls.clone(), files.clone())
        }));
    }
    let ready = options.state_dir.join(&options.ready_file);
    let facts = serde_json::json!({ "pid": std::process::id(), "addresses": options.addresses });
    write_whole(&ready, facts.to_string().as_bytes())?;
    println!("serving on {:?}", options.addresses);
    ended(options.while_stdin_open).await?;
    std::fs::remove_file(&ready)?;
    Ok(())
}

/// Waits for SIGTERM, SIGINT or, where asked, the end of standard input.
async fn ended(while_stdin_open: bool) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let input = async {
        if while_stdin_open {
            let mut rest = Vec::new();
            let _ = tokio::io::stdin().read_to_end(&mut rest).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = input => {}
    }
    Ok(())
}

fn acceptor(options: &Options) -> Result<TlsAcceptor, Box<dyn std::error::Error>> {
    let mut names = options.name.clone();
    names.extend(options.addresses.iter().map(ToString::to_string));
    let made = certificates::make(names)?;
    write_whole(&options.state_dir.join(&options.ca_file), made.ca_pem.as_bytes())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.key));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.certificate], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Writes a file so that a reader sees all of it or nothing.
fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, content)?;
    std::fs::rename(part, path)
}

async fn accept<F, Fut>(listener: TcpListener, slots: Arc<Semaphore>, serve: F)
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = std::io::Result<()>> + Send + 'static,
{
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = timeout(CONNECTION_LIFE, serve(stream));
                tokio::spawn(async move {
                    let _ = served.await;
                    drop(slot);
                });
            }
            // Out of file descriptors or an aborted connection: neither ends the server, nor may it spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn echo_stream(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await.map(|_| ())
}

async fn echo_datagrams(socket: UdpSocket) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from).await;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Starts a Redis server that ends with this program.
fn redis(options: &Options) -> std::io::Result<tokio::process::Child> {
    let address = options.addresses.first().map(ToString::to_string).unwrap_or_default();
    tokio::process::Command::new("redis-server")
        .args([
            "--bind",
            &address,
            "--port",
            "6379",
            "--save",
            "",
            "--appendonly",
            "no",
            "--protected-mode",
            "no",
        ])
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

/// Starts an SSH server of the git repository that ends with this program.
fn git_ssh(program: &Path, options: &Options) -> std::io::Result<tokio::process::Child> {
    let address = options.addresses.first().map(ToString::to_string).unwrap_or_default();
    let files = options.files.clone().unwrap_or_default();
    tokio::process::Command::new(program)
        .arg(format!("{address}:22"))
        .arg(files.join("repo.git"))
        .arg(options.state_dir.join("ssh_host_key.pub"))
        .stdin(std::process::Stdio::piped())
        .spawn()
}

/// Lets this process have as many connections as it serves.
fn raise_descriptors() -> nix::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

/// The file that `path` names, if it is one below `root`.
async fn file(root: Option<&Path>, path: &str) -> Option<Vec<u8>> {
    let path = path.split('?').next()?.trim_start_matches('/').trim_end_matches('/');
    if path.is_empty() || path.split('/').any(|part| part.starts_with("..")) {
        return None;
    }
    let whole = root?.join(path.replace("%2f", "/"));
    match tokio::fs::read(&whole).await {
        Ok(data) => Some(data),
        Err(_) => tokio::fs::read(whole.join("index.html")).await.ok(),
    }
}

async fn answer_plain(stream: TcpStream, files: Option<Arc<Path>>) -> std::io::Result<()> {
    let address = stream.local_addr()?.ip();
    answer(stream, address, "-", files.as_deref()).await
}

async fn answer_tls(stream: TcpStream, tls: TlsAcceptor, files: Option<Arc<Path>>) -> std::io::Result<()> {
    let address = stream.local_addr()?.ip();
    let stream = tls.accept(stream).await?;
    let name = stream.get_ref().1.server_name().unwrap_or("-").to_owned();
    answer(stream, address, &name, files.as_deref()).await
}

/// Answers every request with `hello from ADDRESS host=HOST sni=NAME path=PATH`, until the peer closes or says so. A body
/// of the request is read where it has a length.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    address: IpAddr,
    name: &str,
    files: Option<&Path>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some(head) = head(&mut stream, &mut buffer).await? else { return Ok(()) };
        let line = |field: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(field).then(|| value.trim().to_owned())
            })
        };
        let mut body: usize = line("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
        while body > 0 {
            let take = body.min(buffer.len());
            buffer.drain(..take);
            body -= take;
            if body > 0 && stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let close = line("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let host = line("host").unwrap_or_else(|| "-".to_owned());
        let path = head.split(' ').nth(1).unwrap_or("-");
        let found = file(files, path).await;
        // Git asks for what it need not have and takes a greeting for it.
        let (code, body) = match found {
            Some(data) => ("200 OK", data),
            None if path.starts_with("/repo.git/") => ("404 Not Found", Vec::new()),
            None => {
                ("200 OK", format!("hello from {address} host={host} sni={name} path={path}\n").into_bytes())
            }
        };
        let kind = if path.starts_with("/simple/") { "text/html" } else { "text/plain" };
        let text = format!(
            "HTTP/1.1 {code}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: {}\r\n\r\n",
            body.len(),
            if close { "close" } else { "keep-alive" },
        );
        stream.write_all(text.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await?;
        if close {
            return stream.shutdown().await;
        }
    }
}

/// The next request head; none where the peer closes or sends too much.
async fn head<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> std::io::Result<Option<String>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            let head = std::mem::replace(buffer, rest);
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        let read = timeout(Duration::from_secs(30), stream.read_buf(buffer)).await??;
        if read == 0 || buffer.len() > HEAD {
            return Ok(None);
        }
    }
}
