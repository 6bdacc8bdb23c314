//! What must hold for any bytes of an agent or a sidecar. See [`crate::fuzzing`].
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "to panic is how an oracle speaks"
)]
use std::sync::{Arc, Mutex};

use tokio_rustls::rustls::server::Acceptor;

use super::client_hello::{ClientHello, HelloError, HelloReader};
use super::http::inspect::{Inspector, Judge};
use super::http::{head, request as http_request};
use super::refusal::Refusal;
use super::request::{self, Connect, Request, Wish};
use super::sniff::classify;
use super::{base64url, claims};
use crate::fuzzing::pieces::sizes;
use crate::policy::{AppProtocol, HostName};

fn read(stream: &[u8], size: usize) -> Result<Option<ClientHello>, HelloError> {
    let mut reader = HelloReader::default();
    for piece in stream.chunks(size) {
        if let Some(hello) = reader.push(piece)? {
            return Ok(Some(hello));
        }
    }
    Ok(None)
}

/// The first bytes of a connection.
pub(crate) fn client_hello(stream: &[u8]) -> bool {
    let whole = read(stream, usize::MAX);
    for size in sizes(stream) {
        assert_eq!(read(stream, size), whole, "in pieces of {size}");
    }
    let protocol = classify(stream);
    for end in 0..stream.len().min(32) {
        assert!(classify(&stream[..end]).is_none_or(|early| Some(early) == protocol), "of {end} bytes");
    }
    let theirs = by_rustls(stream);
    let hello = match whole {
        Ok(Some(hello)) => hello,
        Ok(None) => {
            assert_eq!(theirs, None, "the server has all of a hello that is waited for");
            return false;
        }
        Err(_) => return false,
    };
    assert_eq!(protocol, Some(AppProtocol::Tls));
    for size in [1, stream.len() % 50 + 2] {
        let records = in_records(&message(stream), size);
        assert_eq!(read(&records, usize::MAX), Ok(Some(hello.clone())), "in records of {size}");
    }
    let ours = hello.server_name.as_deref().and_then(|name| HostName::parse(name).ok());
    if let Some(Theirs(theirs)) = theirs {
        // A name that we refuse closes the connection; one that passes is what the server reads too.
        assert!(theirs.is_none() || theirs == ours || (ours.is_none() && hello.server_name.is_some()));
    }
    ours.is_some()
}

/// The server name of a hello to another reader, if it finds one.
#[derive(Debug, PartialEq)]
struct Theirs(Option<HostName>);

/// What a TLS server of another author reads.
fn by_rustls(stream: &[u8]) -> Option<Theirs> {
    let mut acceptor = Acceptor::default();
    let mut rest = stream;
    while !rest.is_empty() && acceptor.read_tls(&mut rest).ok()? > 0 {
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            return Some(Theirs(hello.server_name().and_then(|name| HostName::parse(name).ok())));
        }
    }
    None
}

/// The first handshake message, out of its records.
fn message(mut stream: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = stream {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        message.extend(&rest[..length]);
        let whole = matches!(*message, [_, a, b, c, ref body @ ..]
            if body.len() == usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap());
        if whole {
            break;
        }
        stream = &rest[length..];
    }
    message
}

fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |piece: &[u8]| {
        let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
        [&[22, 3, 3], length.as_slice(), piece].concat()
    };
    message.chunks(size).flat_map(record).collect()
}

/// The name that the gateway takes a hello to be for whose server name is `name`.
pub(crate) fn asked_by_hello(name: &[u8]) -> Option<HostName> {
    let vector = |bytes: &[u8]| Some([&u16::try_from(bytes.len()).ok()?.to_be_bytes(), bytes].concat());
    let list = vector(&[&[0], vector(name)?.as_slice()].concat())?;
    let extensions = vector(&[&[0, 0], vector(&list)?.as_slice()].concat())?;
    let body = [&[3; 34], &[0, 0, 2, 0x13, 1, 1, 0][..], &extensions].concat();
    let message = [&[1, 0], u16::try_from(body.len()).ok()?.to_be_bytes().as_slice(), &body].concat();
    let hello = read(&in_records(&message, 4096), usize::MAX).ok()??;
    HostName::parse(&hello.server_name?).ok()
}

#[derive(Clone, Default)]
struct Judged(Arc<Mutex<Vec<(String, String)>>>);

impl Judge for Judged {
    fn judge(&mut self, method: &str, path: &str) -> Result<(), Refusal> {
        self.0.lock().unwrap().push((method.to_owned(), path.to_owned()));
        Ok(())
    }
}

/// What goes on of a stream of requests.
#[derive(Debug, PartialEq)]
pub(crate) struct Inspected {
    /// Whether all of it was good so far.
    pub(crate) good: bool,
    /// Whether it ends with a whole request.
    pub(crate) whole: bool,
    /// Methods and paths that were judged.
    pub(crate) judged: Vec<(String, String)>,
    /// The bytes.
    pub(crate) out: Vec<u8>,
}

/// Inspects `stream` on a connection to `name` and `port`.
pub(crate) fn inspect(stream: &[u8], name: &HostName, port: u16, size: usize) -> Inspected {
    let judged = Judged::default();
    let mut inspector = Inspector::new(name.clone(), port, Box::new(judged.clone()));
    let mut out = Vec::new();
    let good = stream.chunks(size).try_for_each(|piece| inspector.push(piece, &mut out)).is_ok();
    let before = judged.0.lock().unwrap().clone();
    // One more is a request only where the last one has ended: with its first byte in a body, the rest is none.
    let more = format!("G / HTTP/1.1\r\nHost: {name}\r\n\r\n");
    let whole = inspector.push(more.as_bytes(), &mut Vec::new()).is_ok()
        && judged.0.lock().unwrap().len() == before.len() + 1;
    Inspected { good, whole, judged: before, out }
}

/// Requests to the host that the first of them names.
pub(crate) fn requests(stream: &[u8]) -> bool {
    let name = first_host(stream).unwrap_or_else(|| "a.example".parse().unwrap());
    let whole = inspect(stream, &name, 80, usize::MAX);
    for size in [usize::MAX].into_iter().chain(sizes(stream)) {
        let found = inspect(stream, &name, 80, size);
        assert_eq!(
            (found.good, found.whole, &found.judged),
            (whole.good, whole.whole, &whole.judged),
            "in {size}"
        );
        // Of a body that goes wrong, what comes before the fault may have gone on.
        assert!(found.out == whole.out || (!whole.good && found.out.starts_with(&whole.out)), "in {size}");
        // As a server reads it: the same requests, and nothing in them that changes a second time.
        let again = inspect(&found.out, &name, 80, usize::MAX);
        assert!(again.good, "what went on is refused");
        assert_eq!((again.judged, again.out), (found.judged, found.out));
    }
    !whole.judged.is_empty()
}

fn first_host(stream: &[u8]) -> Option<HostName> {
    let length = head::length(stream, 0).ok()??;
    let head = head::parse(&stream[..length]).ok()?;
    let host = std::str::from_utf8(head.only("host").ok()??).ok()?;
    HostName::parse(host.strip_suffix(":80").unwrap_or(host)).ok()
}

/// One head by the strict parser: read line by line without thought it is the same.
pub(crate) fn strict_head(text: &[u8]) -> Option<head::Head<'_>> {
    let head = head::parse(text).ok()?;
    let text = text.strip_suffix(b"\r\n\r\n").unwrap();
    let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = format!("{} {} HTTP/1.{}", head.method, head.target, head.minor);
    assert_eq!(lines.next(), Some(first.as_bytes()));
    for (name, value) in &head.fields {
        let line = lines.next().unwrap();
        let colon = line.iter().position(|byte| *byte == b':').unwrap();
        assert_eq!((name.as_bytes(), *value), (&line[..colon], line[colon + 1..].trim_ascii()));
        assert!(!value.contains(&b'\r'));
    }
    assert_eq!(lines.next(), None);
    Some(head)
}

/// The name that a plain request reaches with this target and this `Host`.
pub(crate) fn asked_by_request(target: &str, host: &str, name: &HostName) -> Option<String> {
    let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let length = head::length(text.as_bytes(), 0).ok()??;
    let head = head::parse(&text.as_bytes()[..length]).ok()?;
    Some(http_request::check(&head, name, 80, false).ok()?.path)
}

/// A head of the protocol between sidecar and gateway: what was understood, written again, means the same.
pub(crate) fn wire_head(text: &[u8]) -> bool {
    let Ok(Request { token, wish }) = request::parse(text) else { return false };
    if let Some(token) = token {
        let pod = claims::stated(token.reveal(), 0);
        let payload = token.reveal().split('.').nth(1).map(|part| (part, base64url::decode(part)));
        match payload {
            Some((part, Some(bytes))) => assert_eq!(base64url::encode(&bytes), part),
            _ => assert_eq!(pod, None),
        }
    }
    let Wish::Connect(Connect { target, written, via, moved }) = wish else { return true };
    let Ok((name, port)) = target else { return false };
    let lower = written.to_ascii_lowercase();
    let (host, digits) = lower.rsplit_once(':').unwrap();
    assert_eq!(host.strip_suffix('.').unwrap_or(host), name.as_str());
    assert_eq!(digits.parse(), Ok(port));
    assert_eq!(connect(&format!("{name}:{port}"), via, moved), Some((name, port, via, moved)));
    true
}

fn connect(target: &str, via: &str, moved: i64) -> Option<(HostName, u16, &'static str, i64)> {
    use crate::egress::wire::{BYTES_HEADER, VIA_HEADER};
    let text = format!("CONNECT {target} HTTP/1.1\r\n{VIA_HEADER}: {via}\r\n{BYTES_HEADER}: {moved}\r\n\r\n");
    let Wish::Connect(Connect { target: Ok((name, port)), via, moved, .. }) =
        request::parse(text.as_bytes()).ok()?.wish
    else {
        return None;
    };
    Some((name, port, via, moved))
}

/// The sidecar asks the gateway for `target`, and the gateway understands the same.
pub(crate) fn connect_means(target: &str) {
    let (name, port, ..) = connect(target, "http", 0).unwrap();
    assert_eq!(format!("{name}:{port}"), target);
}

/// The name that the gateway connects to when it is asked for `host`.
pub(crate) fn asked_by_connect(host: &str) -> Option<HostName> {
    connect(&format!("{host}:443"), "http", 0).map(|(name, ..)| name)
}
