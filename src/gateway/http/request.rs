//! What a request of the agent asks for, and the form in which it goes on: one reading for the gateway and the server.
use super::body::Body;
use super::head::{Head, is_token};
use crate::policy::{HostName, shown};

/// Why a request is refused, whatever the policy says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No `Host`, or several.
    #[error("a request needs exactly one Host field")]
    Host,
    /// Another name than the connection's.
    #[error("the request is for `{0}`, and the connection is not")]
    Mismatch(String),
    /// A target that is neither a path nor `http://NAME/path`.
    #[error("the target of the request is neither a path nor a URL of plain HTTP")]
    Target,
    /// A tunnel inside.
    #[error("CONNECT is not allowed inside a connection")]
    Connect,
    /// A length that is not one number.
    #[error("Content-Length is not one number")]
    Length,
    /// Another coding than `chunked`, or not once, or in HTTP/1.0.
    #[error("Transfer-Encoding is not exactly `chunked`")]
    Coding,
    /// Length and coding.
    #[error("Content-Length and Transfer-Encoding exclude each other")]
    TwoLengths,
    /// An option of the connection that would take away a field on the way.
    #[error("Connection names other fields than its own")]
    Connection,
    /// A name that some servers take for another, such as `Content_Length`.
    #[error("the field `{0}` is too close to one that decides where a request ends or goes")]
    Lookalike(String),
    /// More than one field that names another method or path.
    #[error("more than one field names another method, or another path")]
    Instead,
    /// A change of the protocol.
    #[error("Upgrade is not allowed on a connection whose requests are checked")]
    Upgrade,
}

/// A request that may be judged by the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Method.
    pub method: String,
    /// Path without the query; `*` for `OPTIONS *`.
    pub path: String,
    /// Method and path that some servers take instead, because a field says so. They have to be allowed as well.
    pub instead: Option<(String, String)>,
    /// What follows the head.
    pub body: Body,
    /// Whether no other may follow it on its connection, which the server is told to end.
    pub last: bool,
    /// The head as it goes on.
    pub forward: Vec<u8>,
}

/// Fields between client and proxy, which end here.
const OWN: [&str; 4] = ["proxy-connection", "proxy-authorization", "connection", "upgrade"];

/// Fields by which a server decides where a request ends or goes.
const DECIDING: [&str; 5] = ["host", "content-length", "transfer-encoding", "connection", "upgrade"];

/// Fields by which some servers take another method, and another path.
const OTHER_METHOD: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
const OTHER_PATH: [&str; 2] = ["x-original-url", "x-rewrite-url"];

/// Checks a request on a connection to `name` and `port`. Where requests are `told_apart`, one with a body is the last of its
/// connection: some servers do not read the bodies of some requests, and take them for further ones.
pub fn check(head: &Head<'_>, name: &HostName, port: u16, told_apart: bool) -> Result<Checked, RequestError> {
    if head.method == "CONNECT" {
        return Err(RequestError::Connect);
    }
    lookalikes(head)?;
    let host = head.only("host").map_err(|_| RequestError::Host)?.ok_or(RequestError::Host)?;
    same_authority(host, name, port)?;
    let target = origin_form(head, name, port)?;
    let mut options = connection_options(head)?;
    upgrade(head)?;
    let body = body(head)?;
    let last = told_apart && !body.is_done();
    if last {
        options = vec!["close"];
    }
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let forward = serialise(head, &target, name, port, host.contains(&b':'), &options);
    let instead = instead(head, &path)?;
    Ok(Checked { method: head.method.to_owned(), path, instead, body, last, forward })
}

fn instead(head: &Head<'_>, path: &str) -> Result<Option<(String, String)>, RequestError> {
    let only = |names: &[&str]| {
        let mut values = names.iter().flat_map(|name| head.values(name));
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => {
                let text = std::str::from_utf8(value).map_err(|_| RequestError::Instead)?;
                Ok(Some(text.to_owned()))
            }
            (Some(_), Some(_)) => Err(RequestError::Instead),
        }
    };
    let (other_method, other_path) = (only(&OTHER_METHOD)?, only(&OTHER_PATH)?);
    if other_method.is_none() && other_path.is_none() {
        return Ok(None);
    }
    let method = other_method.map_or_else(|| head.method.to_owned(), |method| method.to_ascii_uppercase());
    Ok(Some((method, other_path.unwrap_or_else(|| path.to_owned()))))
}

fn lookalikes(head: &Head<'_>) -> Result<(), RequestError> {
    let decide = DECIDING.iter().chain(&OTHER_METHOD).chain(&OTHER_PATH);
    let close = |name: &str| {
        name.contains('_') && decide.clone().any(|other| name.replace('_', "-").eq_ignore_ascii_case(other))
    };
    match head.fields.iter().find(|(name, _)| close(name)) {
        Some((name, _)) => Err(RequestError::Lookalike((*name).to_owned())),
        None => Ok(()),
    }
}

/// The part before a port that is this connection's or absent must be its name.
fn same_authority(authority: &[u8], name: &HostName, port: u16) -> Result<(), RequestError> {
    let text = String::from_utf8_lossy(authority);
    let mismatch = || RequestError::Mismatch(shown(&text));
    let (host, written) = match text.split_once(':') {
        Some((host, written)) => (host, Some(written)),
        None => (text.as_ref(), None),
    };
    if written.is_some_and(|written| written != port.to_string()) {
        return Err(mismatch());
    }
    if host.parse::<HostName>().is_ok_and(|host| host == *name) { Ok(()) } else { Err(mismatch()) }
}

/// The target as a path, with its query.
fn origin_form(head: &Head<'_>, name: &HostName, port: u16) -> Result<String, RequestError> {
    let target = head.target;
    if target.contains('#') {
        return Err(RequestError::Target);
    }
    if target.starts_with('/') || (target == "*" && head.method == "OPTIONS") {
        return Ok(target.to_owned());
    }
    let (scheme, rest) = target.split_once("://").ok_or(RequestError::Target)?;
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(RequestError::Target);
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).ok_or(RequestError::Target)?;
    same_authority(authority.as_bytes(), name, port)?;
    Ok(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
}

/// Options of the connection that go on. Others than the known would let a proxy on the way drop fields that were
/// checked here.
fn connection_options(head: &Head<'_>) -> Result<Vec<&'static str>, RequestError> {
    let mut options = Vec::new();
    for value in head.values("connection") {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let known = |text: &str| option.eq_ignore_ascii_case(text.as_bytes());
            if known("close") {
                options.push("close");
            } else if known("keep-alive") {
                options.push("keep-alive");
            } else if known("te") {
                options.push("te");
            } else if !(option.is_empty() || known("upgrade") || known("http2-settings")) {
                return Err(RequestError::Connection);
            }
        }
    }
    options.dedup();
    options.truncate(8);
    Ok(options)
}

/// An offer of HTTP/2, which Java's client makes in every first request, is passed over; a server answers it as if it
/// had not been made. Other protocols are refused: their bytes could not be checked.
fn upgrade(head: &Head<'_>) -> Result<(), RequestError> {
    let good = head.values("upgrade").all(|value| value.eq_ignore_ascii_case(b"h2c"));
    if good { Ok(()) } else { Err(RequestError::Upgrade) }
}

fn body(head: &Head<'_>) -> Result<Body, RequestError> {
    let length = head.only("content-length").map_err(|_| RequestError::Length)?;
    let coding = head.only("transfer-encoding").map_err(|_| RequestError::Coding)?;
    match (length, coding) {
        (None, None) => Ok(Body::Length(0)),
        (Some(_), Some(_)) => Err(RequestError::TwoLengths),
        (Some(value), None) => {
            let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            number.filter(|_| digits).map(Body::Length).ok_or(RequestError::Length)
        }
        (None, Some(value)) if head.minor == 1 && value.eq_ignore_ascii_case(b"chunked") => {
            Ok(Body::chunked())
        }
        (None, Some(_)) => Err(RequestError::Coding),
    }
}

fn serialise(
    head: &Head<'_>,
    target: &str,
    name: &HostName,
    port: u16,
    with_port: bool,
    options: &[&str],
) -> Vec<u8> {
    debug_assert!(is_token(head.method.as_bytes()), "the head was parsed");
    let mut out = format!("{} {target} HTTP/1.{}\r\nHost: {name}", head.method, head.minor).into_bytes();
    if with_port {
        out.extend(format!(":{port}").as_bytes());
    }
    out.extend(b"\r\n");
    for (field, value) in &head.fields {
        let lower = field.to_ascii_lowercase();
        if lower == "host" || lower == "http2-settings" || OWN.contains(&lower.as_str()) {
            continue;
        }
        out.extend(field.as_bytes());
        out.extend(b": ");
        out.extend(*value);
        out.extend(b"\r\n");
    }
    if !options.is_empty() {
        out.extend(format!("Connection: {}\r\n", options.join(", ")).as_bytes());
    }
    out.extend(b"\r\n");
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::super::head;
    use super::*;

    fn of(text: &str) -> Result<Checked, RequestError> {
        let head = head::parse(text.as_bytes()).unwrap();
        check(&head, &"api.example".parse().unwrap(), 8080, false)
    }

    #[test]
    fn a_request_with_a_body_is_the_last_where_requests_are_told_apart() {
        for (fields, told_apart, last) in [
            ("Content-Length: 3\r\nConnection: keep-alive, te\r\n", true, true),
            ("Transfer-Encoding: chunked\r\n", true, true),
            ("Content-Length: 0\r\n", true, false),
            ("", true, false),
            ("Content-Length: 3\r\n", false, false),
        ] {
            let text = format!("GET /a HTTP/1.1\r\nHost: api.example\r\n{fields}\r\n");
            let head = head::parse(text.as_bytes()).unwrap();
            let checked = check(&head, &"api.example".parse().unwrap(), 80, told_apart).unwrap();
            let forward = String::from_utf8(checked.forward).unwrap();
            assert_eq!(
                (checked.last, forward.contains("\r\nConnection: close\r\n")),
                (last, last),
                "{fields}"
            );
            assert!(!last || !forward.contains("keep-alive"), "{forward}");
        }
    }

    fn forward(text: &str) -> String {
        String::from_utf8(of(text).unwrap().forward).unwrap()
    }

    #[rstest]
    #[case::plain("GET /a?b=/c HTTP/1.1\r\nHost: api.example\r\n\r\n", "/a")]
    #[case::port("GET /a HTTP/1.1\r\nHost: api.example:8080\r\n\r\n", "/a")]
    #[case::capitals("GET /a HTTP/1.1\r\nhOST: API.example\r\n\r\n", "/a")]
    #[case::dot("GET /a HTTP/1.1\r\nHost: api.example.\r\n\r\n", "/a")]
    #[case::absolute("GET http://api.example/a HTTP/1.1\r\nHost: api.example\r\n\r\n", "/a")]
    #[case::absolute_no_path("GET http://api.example:8080 HTTP/1.1\r\nHost: api.example\r\n\r\n", "/")]
    #[case::absolute_query("GET HTTP://api.example?q HTTP/1.1\r\nHost: api.example\r\n\r\n", "/")]
    #[case::asterisk("OPTIONS * HTTP/1.1\r\nHost: api.example\r\n\r\n", "*")]
    fn the_name_of_the_connection_passes(#[case] text: &str, #[case] path: &str) {
        assert_eq!(of(text).unwrap().path, path);
    }

    #[rstest]
    #[case::none("GET / HTTP/1.1\r\n\r\n")]
    #[case::none_in_1_0("GET / HTTP/1.0\r\n\r\n")]
    #[case::two("GET / HTTP/1.1\r\nHost: api.example\r\nHost: api.example\r\n\r\n")]
    #[case::two_spellings("GET / HTTP/1.1\r\nHost: api.example\r\nhost: other.example\r\n\r\n")]
    #[case::empty("GET / HTTP/1.1\r\nHost:\r\n\r\n")]
    #[case::other("GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")]
    #[case::suffix("GET / HTTP/1.1\r\nHost: a.api.example\r\n\r\n")]
    #[case::list("GET / HTTP/1.1\r\nHost: api.example, other.example\r\n\r\n")]
    #[case::user("GET / HTTP/1.1\r\nHost: api.example@other.example\r\n\r\n")]
    #[case::other_port("GET / HTTP/1.1\r\nHost: api.example:80\r\n\r\n")]
    #[case::no_port("GET / HTTP/1.1\r\nHost: api.example:\r\n\r\n")]
    #[case::padded_port("GET / HTTP/1.1\r\nHost: api.example:08080\r\n\r\n")]
    #[case::two_ports("GET / HTTP/1.1\r\nHost: api.example:8080:8080\r\n\r\n")]
    #[case::escaped("GET / HTTP/1.1\r\nHost: api%2eexample\r\n\r\n")]
    #[case::address("GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n")]
    #[case::method_lookalike("GET / HTTP/1.1\r\nHost: api.example\r\nX_HTTP_Method_Override: DELETE\r\n\r\n")]
    #[case::path_lookalike("GET / HTTP/1.1\r\nHost: api.example\r\nX-Original_URL: /admin\r\n\r\n")]
    #[case::lookalike("GET / HTTP/1.1\r\nHost: api.example\r\nX_Y: 1\r\nContent_Length: 4\r\n\r\n")]
    #[case::absolute_mismatch("GET http://other.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n")]
    #[case::absolute_host_mismatch("GET http://api.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n")]
    #[case::absolute_user("GET http://api.example@other.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n")]
    #[case::absolute_backslash(
        "GET http://api.example\\@other.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n"
    )]
    #[case::https("GET https://api.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n")]
    #[case::authority_form("GET api.example:80 HTTP/1.1\r\nHost: api.example\r\n\r\n")]
    #[case::fragment("GET /#a HTTP/1.1\r\nHost: api.example\r\n\r\n")]
    #[case::asterisk("GET * HTTP/1.1\r\nHost: api.example\r\n\r\n")]
    #[case::no_slash("GET a HTTP/1.1\r\nHost: api.example\r\n\r\n")]
    #[case::connect("CONNECT other.example:443 HTTP/1.1\r\nHost: api.example\r\n\r\n")]
    #[case::websocket(
        "GET / HTTP/1.1\r\nHost: api.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )]
    #[case::two_upgrades("GET / HTTP/1.1\r\nHost: api.example\r\nUpgrade: h2c\r\nUpgrade: tls/1.0\r\n\r\n")]
    #[case::drops_host("GET / HTTP/1.1\r\nHost: api.example\r\nConnection: close, Host\r\n\r\n")]
    #[case::drops_length(
        "GET / HTTP/1.1\r\nHost: api.example\r\nConnection: content-length\r\nContent-Length: 4\r\n\r\n"
    )]
    fn another_name_does_not(#[case] text: &str) {
        assert!(of(text).is_err(), "{text:?}");
    }

    #[rstest]
    #[case::both("Content-Length: 5\r\nTransfer-Encoding: chunked", RequestError::TwoLengths)]
    #[case::two_lengths("Content-Length: 5\r\nContent-Length: 5", RequestError::Length)]
    #[case::list("Content-Length: 5, 5", RequestError::Length)]
    #[case::sign("Content-Length: +5", RequestError::Length)]
    #[case::negative("Content-Length: -5", RequestError::Length)]
    #[case::hex("Content-Length: 0x5", RequestError::Length)]
    #[case::empty("Content-Length:", RequestError::Length)]
    #[case::huge("Content-Length: 9999999999999999999", RequestError::Length)]
    #[case::two_codings("Transfer-Encoding: gzip, chunked", RequestError::Coding)]
    #[case::twice("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", RequestError::Coding)]
    #[case::chunked_twice("Transfer-Encoding: chunked, chunked", RequestError::Coding)]
    #[case::identity("Transfer-Encoding: identity", RequestError::Coding)]
    #[case::quoted("Transfer-Encoding: \"chunked\"", RequestError::Coding)]
    #[case::parameter("Transfer-Encoding: chunked;a=b", RequestError::Coding)]
    #[case::vertical("Transfer-Encoding: xchunked", RequestError::Coding)]
    fn a_request_ends_at_one_place(#[case] fields: &str, #[case] error: RequestError) {
        let text = format!("POST / HTTP/1.1\r\nHost: api.example\r\n{fields}\r\n\r\n");
        assert_eq!(of(&text), Err(error));
    }

    #[test]
    fn lengths_and_chunks_are_read() {
        let with = |field: &str| of(&format!("POST / HTTP/1.1\r\nHost: api.example\r\n{field}\r\n\r\n"));
        assert_eq!(with("Content-Length: 0123").unwrap().body, Body::Length(123));
        assert_eq!(with("Transfer-Encoding: Chunked").unwrap().body, Body::chunked());
        assert_eq!(with("A: b").unwrap().body, Body::Length(0));
        let old = "POST / HTTP/1.0\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(of(old), Err(RequestError::Coding));
    }

    #[test]
    fn what_a_server_may_take_instead_is_told() {
        let with = |fields: &str| {
            of(&format!("POST /a?b HTTP/1.1\r\nHost: api.example\r\n{fields}\r\n\r\n"))
                .map(|checked| checked.instead)
        };
        let pair = |method: &str, path: &str| Ok(Some((method.to_owned(), path.to_owned())));
        assert_eq!(with("A: b"), Ok(None));
        assert_eq!(with("X-HTTP-Method-Override: delete"), pair("DELETE", "/a"));
        assert_eq!(with("X-Original-URL: /secret?c"), pair("POST", "/secret?c"));
        assert_eq!(with("x-rewrite-url: /b\r\nx-method-override: PUT"), pair("PUT", "/b"));
        assert_eq!(with("X-Rewrite-URL: /b\r\nX-Original-URL: /c"), Err(RequestError::Instead));
        assert_eq!(with("X-HTTP-Method: GET\r\nX-Method-Override: PUT"), Err(RequestError::Instead));
    }

    #[test]
    fn what_goes_on_is_what_was_checked() {
        assert_eq!(
            forward(
                "GET http://API.example:8080/a?b HTTP/1.1\r\nA:  b\t\r\nHost: API.example.:8080\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\n\r\n"
            ),
            "GET /a?b HTTP/1.1\r\nHost: api.example:8080\r\nA: b\r\n\r\n",
        );
        assert_eq!(
            forward(
                "GET / HTTP/1.1\r\nHost: api.example\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n"
            ),
            "GET / HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n",
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_goes_on_passes_again_unchanged(
            method in "GET|POST|OPTIONS",
            target in "(http://api\\.example)?[/a*?]{1,4}",
            host in "api\\.example(:8080)?",
            fields in "((Connection|Upgrade|Content-Length|Transfer-Encoding|X): (close|h2c|te|5|chunked|a, b)\r\n){0,4}",
        ) {
            let text = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
            if let Ok(checked) = of(&text) {
                let again = of(std::str::from_utf8(&checked.forward).unwrap()).unwrap();
                prop_assert_eq!(again, checked);
            }
        }

        #[test]
        fn no_other_host_passes(host in "[a-z.:0-9@ ,%\\[\\]]{0,24}") {
            let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let same = ["api.example", "api.example.", "api.example:8080", "api.example.:8080"];
            prop_assert_eq!(of(&text).is_ok(), same.contains(&host.trim()));
        }
    }
}
