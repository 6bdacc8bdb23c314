//! What a sidecar asks for. See [`crate::egress::wire`].
use super::http::head::{Head, HeadError, parse as parse_head};
use crate::egress::wire::{BYTES_HEADER, VIA_HEADER};
use crate::policy::{HostName, HostNameError};

/// Longest token. Those of Kubernetes have 1 to 2 KiB.
const MAX_TOKEN: usize = 8 * 1024;

/// A request and who makes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// The token, if there is one.
    pub token: Option<Token>,
    /// What is asked for.
    pub wish: Wish,
}

/// A token; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    #[cfg(test)]
    pub(super) fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token")
    }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// A connection.
    Connect(Connect),
    /// The policy.
    Policy,
}

/// A connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Connect {
    /// Where to.
    pub target: Result<(HostName, u16), HostNameError>,
    /// The target as it was written, at most 300 characters, for the record.
    pub written: String,
    /// How the agent asked.
    pub via: &'static str,
    /// Bytes that the sandbox moved so far.
    pub moved: i64,
}

/// Why a request is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// The head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// Another method or path.
    #[error("only `CONNECT name:port` and `GET /v1/policy` are answered")]
    Unknown,
    /// The target of a connection.
    #[error("the target is not name:port")]
    Target,
    /// A field of the protocol that is missing, repeated or no value of it.
    #[error("the field {0} is missing, repeated or has no value of its kind")]
    Field(&'static str),
    /// A body.
    #[error("the request has a body")]
    Body,
}

/// Reads a whole head.
pub fn parse(head: &[u8]) -> Result<Request, BadRequest> {
    let head = parse_head(head)?;
    if head.minor != 1 {
        return Err(BadRequest::Head(HeadError::RequestLine));
    }
    if head.values("transfer-encoding").chain(head.values("content-length")).next().is_some() {
        return Err(BadRequest::Body);
    }
    let token = token(&head)?;
    let wish = match (head.method, head.target) {
        ("GET", "/v1/policy") => Wish::Policy,
        ("CONNECT", target) => Wish::Connect(connect(&head, target)?),
        _ => return Err(BadRequest::Unknown),
    };
    Ok(Request { token, wish })
}

fn token(head: &Head<'_>) -> Result<Option<Token>, BadRequest> {
    const FIELD: BadRequest = BadRequest::Field("authorization");
    let Some(value) = head.only("authorization").map_err(|_| FIELD)? else { return Ok(None) };
    let (scheme, token) = value.split_at_checked("Bearer ".len()).ok_or(FIELD)?;
    let text = std::str::from_utf8(token).map_err(|_| FIELD)?;
    let good = scheme.eq_ignore_ascii_case(b"Bearer ")
        && (1..=MAX_TOKEN).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    if good { Ok(Some(Token(text.to_owned()))) } else { Err(FIELD) }
}

fn connect(head: &Head<'_>, target: &str) -> Result<Connect, BadRequest> {
    let (host, port) = target.rsplit_once(':').ok_or(BadRequest::Target)?;
    let digits = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    let port: u16 = port.parse().ok().filter(|port| digits && *port > 0).ok_or(BadRequest::Target)?;
    let via = match only_text(head, VIA_HEADER)? {
        "transparent" => "transparent",
        "http-connect" => "http-connect",
        "http" => "http",
        "socks5" => "socks5",
        _ => return Err(BadRequest::Field(VIA_HEADER)),
    };
    let moved = only_text(head, BYTES_HEADER)?;
    let digits = moved.bytes().all(|byte| byte.is_ascii_digit());
    let moved = moved.parse().ok().filter(|_| digits).ok_or(BadRequest::Field(BYTES_HEADER))?;
    let target_name = host.parse::<HostName>().map(|name| (name, port));
    Ok(Connect { target: target_name, written: target.chars().take(300).collect(), via, moved })
}

fn only_text<'a>(head: &Head<'a>, name: &'static str) -> Result<&'a str, BadRequest> {
    let value = head.only(name).map_err(|_| BadRequest::Field(name))?.ok_or(BadRequest::Field(name))?;
    std::str::from_utf8(value).map_err(|_| BadRequest::Field(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const REST: &str = "X-Agentsandbox-Via: http\r\nx-agentsandbox-bytes: 12\r\n\r\n";

    fn of(text: &str) -> Result<Request, BadRequest> {
        parse(text.as_bytes())
    }

    fn target(text: &str) -> Result<(String, u16), String> {
        match of(&format!("CONNECT {text} HTTP/1.1\r\n{REST}")).map(|request| request.wish) {
            Ok(Wish::Connect(Connect { target: Ok((name, port)), .. })) => Ok((name.to_string(), port)),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn both_requests_are_understood() {
        let request =
            of(&format!("CONNECT A.Example.:443 HTTP/1.1\r\nauthorization: bearer a.b-c\r\n{REST}"));
        let connect = Connect {
            target: Ok(("a.example".parse().unwrap(), 443)),
            written: "A.Example.:443".to_owned(),
            via: "http",
            moved: 12,
        };
        let token = Some(Token::of("a.b-c"));
        assert_eq!(request, Ok(Request { token, wish: Wish::Connect(connect) }));
        let policy = of("GET /v1/policy HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(policy, Ok(Request { token: None, wish: Wish::Policy }));
    }

    #[rstest]
    #[case::no_port("a.example")]
    #[case::empty_port("a.example:")]
    #[case::zero("a.example:0")]
    #[case::large("a.example:65536")]
    #[case::sign("a.example:+443")]
    #[case::address("192.0.2.1:443")]
    #[case::address6("[2001:db8::1]:443")]
    #[case::decimal("3221225985:443")]
    #[case::hex("0x7f.1:443")]
    #[case::user("a.example@b.example:443")]
    #[case::nul("a.example%00.b.example:443")]
    #[case::two_ports("a.example:443:443")]
    #[case::url("https://a.example:443")]
    #[case::path("a.example:443/")]
    fn targets_are_a_name_and_a_port(#[case] text: &str) {
        assert!(target(text).is_err(), "{text}");
    }

    #[rstest]
    #[case::other_method("POST /v1/policy HTTP/1.1\r\n\r\n")]
    #[case::other_path("GET /v1/policy/ HTTP/1.1\r\n\r\n")]
    #[case::old("GET /v1/policy HTTP/1.0\r\n\r\n")]
    #[case::body("GET /v1/policy HTTP/1.1\r\nContent-Length: 0\r\n\r\n")]
    #[case::chunks("GET /v1/policy HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")]
    #[case::two_tokens(
        "GET /v1/policy HTTP/1.1\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"
    )]
    #[case::basic("GET /v1/policy HTTP/1.1\r\nAuthorization: Basic abcdefgh\r\n\r\n")]
    #[case::no_token("GET /v1/policy HTTP/1.1\r\nAuthorization: Bearer \r\n\r\n")]
    #[case::blank_in_token("GET /v1/policy HTTP/1.1\r\nAuthorization: Bearer a b\r\n\r\n")]
    #[case::no_via("CONNECT a.example:443 HTTP/1.1\r\nx-agentsandbox-bytes: 1\r\n\r\n")]
    #[case::other_via(
        "CONNECT a.example:443 HTTP/1.1\r\nx-agentsandbox-via: x\r\nx-agentsandbox-bytes: 1\r\n\r\n"
    )]
    #[case::no_bytes("CONNECT a.example:443 HTTP/1.1\r\nx-agentsandbox-via: http\r\n\r\n")]
    #[case::negative(
        "CONNECT a.example:443 HTTP/1.1\r\nx-agentsandbox-via: http\r\nx-agentsandbox-bytes: -1\r\n\r\n"
    )]
    #[case::twice(
        "CONNECT a.example:443 HTTP/1.1\r\nx-agentsandbox-via: http\r\nx-agentsandbox-bytes: 1\r\nx-agentsandbox-bytes: 0\r\n\r\n"
    )]
    fn anything_else_is_refused(#[case] text: &str) {
        assert!(of(text).is_err(), "{text:?}");
    }

    #[test]
    fn a_token_is_not_shown() {
        let shown = format!("{:?}", of("GET /v1/policy HTTP/1.1\r\nAuthorization: Bearer abc\r\n\r\n"));
        assert!(!shown.contains("abc"), "{shown}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_checked_is_what_was_asked(text in "[a-zA-Z0-9._:%@\\[\\]-]{1,30}") {
            if let Ok((name, port)) = target(&text) {
                let canonical = format!("{}:{port}", text.rsplit_once(':').unwrap().0);
                prop_assert_eq!(canonical.to_ascii_lowercase().replace(".:", ":"), format!("{name}:{port}"));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
