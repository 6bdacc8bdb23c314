//! The requests of one connection, one after the other: each is checked and judged before a byte of it goes on.
use super::body::Body;
use super::head::{self, HeadError};
use super::request::{self, RequestError};
use crate::gateway::refusal::{Cause, Refusal};
use crate::policy::{HostName, Reason};

/// Judges one request by the policy of this moment.
pub trait Judge: Send {
    /// Whether the request may be sent.
    fn judge(&mut self, method: &str, path: &str) -> Result<(), Refusal>;

    /// Whether it may depend on method or path.
    fn tells_apart(&self) -> bool {
        false
    }
}

/// The requests of one connection.
pub struct Inspector {
    name: HostName,
    port: u16,
    judge: Box<dyn Judge>,
    state: State,
    requests: u64,
}

enum State {
    /// In a head, or before one.
    Head { bytes: Vec<u8>, seen: usize },
    /// In a body, and whether it is the last one's.
    Body(Body, bool),
    /// After a refusal.
    Over(Refusal),
}

impl std::fmt::Debug for Inspector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Inspector").field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl Inspector {
    /// For a connection to `name` and `port`.
    pub fn new(name: HostName, port: u16, judge: Box<dyn Judge>) -> Self {
        Self { name, port, judge, state: State::Head { bytes: Vec::new(), seen: 0 }, requests: 0 }
    }

    /// Requests that went on.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Whether a head has begun and not ended.
    pub fn in_head(&self) -> bool {
        matches!(&self.state, State::Head { bytes, .. } if !bytes.is_empty())
    }

    /// Takes bytes of the agent and adds to `out` what goes on to the server. After a refusal nothing ever does.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        while !input.is_empty() {
            match self.step(input, out) {
                Ok(taken) => input = input.get(taken..).unwrap_or_default(),
                Err(refusal) => {
                    self.state = State::Over(refusal.clone());
                    return Err(refusal);
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        match &mut self.state {
            State::Over(refusal) => Err(refusal.clone()),
            State::Body(body, last) => {
                let taken = body.take(input).map_err(|error| malformed(&error))?;
                out.extend_from_slice(input.get(..taken).unwrap_or_default());
                if body.is_done() {
                    self.state = if *last {
                        State::Over(no_more())
                    } else {
                        State::Head { bytes: Vec::new(), seen: 0 }
                    };
                }
                Ok(taken)
            }
            State::Head { bytes, seen } => {
                let before = bytes.len();
                bytes.extend_from_slice(input);
                let Some(length) = head::length(bytes, *seen).map_err(of_head)? else {
                    *seen = bytes.len();
                    return Ok(input.len());
                };
                bytes.truncate(length);
                let checked = request::check(
                    &head::parse(bytes).map_err(of_head)?,
                    &self.name,
                    self.port,
                    self.judge.tells_apart(),
                )
                .map_err(|error| of_request(&error))?;
                if let Some((method, path)) = &checked.instead {
                    self.judge.judge(method, path)?;
                }
                self.judge.judge(&checked.method, &checked.path)?;
                out.extend_from_slice(&checked.forward);
                self.requests += 1;
                self.state = if checked.body.is_done() {
                    State::Head { bytes: Vec::new(), seen: 0 }
                } else {
                    State::Body(checked.body, checked.last)
                };
                Ok(length.saturating_sub(before))
            }
        }
    }
}

fn no_more() -> Refusal {
    let message = "a request with a body is the last of its connection, since the rule tells methods or paths apart; open another one";
    Refusal::new(Cause::Policy(Reason::Malformed), message)
}

fn of_head(error: HeadError) -> Refusal {
    malformed(&error)
}

fn malformed(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(Cause::Policy(Reason::Malformed), error.to_string())
}

fn of_request(error: &RequestError) -> Refusal {
    let reason = match error {
        RequestError::Host | RequestError::Mismatch(_) => Reason::NameMismatch,
        RequestError::Upgrade => Reason::ProtocolNotAllowed,
        RequestError::Connect => Reason::MethodNotAllowed,
        _ => Reason::Malformed,
    };
    Refusal::new(Cause::Policy(reason), error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    struct Only(Arc<Mutex<Vec<String>>>);

    struct Strict;

    impl Judge for Strict {
        fn judge(&mut self, _: &str, _: &str) -> Result<(), Refusal> {
            Ok(())
        }

        fn tells_apart(&self) -> bool {
            true
        }
    }

    impl Judge for Only {
        fn judge(&mut self, method: &str, path: &str) -> Result<(), Refusal> {
            self.0.lock().unwrap().push(format!("{method} {path}"));
            let refused = Cause::Policy(Reason::MethodNotAllowed);
            if method == "DELETE" { Err(Refusal::new(refused, "no")) } else { Ok(()) }
        }
    }

    fn inspector() -> (Inspector, Arc<Mutex<Vec<String>>>) {
        let seen = Arc::default();
        let judge = Box::new(Only(Arc::clone(&seen)));
        (Inspector::new("api.example".parse().unwrap(), 80, judge), seen)
    }

    fn run(text: &[u8], piece: usize) -> (Result<(), Refusal>, String, Vec<String>) {
        let ((mut inspector, seen), mut out) = (inspector(), Vec::new());
        let result = text.chunks(piece).try_for_each(|piece| inspector.push(piece, &mut out));
        let seen = seen.lock().unwrap().clone();
        (result, String::from_utf8_lossy(&out).into_owned(), seen)
    }

    const FIRST: &str = "POST /a HTTP/1.1\r\nHost: api.example\r\nContent-Length: 3\r\n\r\nabc";
    const SECOND: &str =
        "PUT /b?c HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGET\r\n0\r\n\r\n";
    const THIRD: &str = "GET /c HTTP/1.1\r\nHost: api.example\r\n\r\n";

    #[test]
    fn every_request_of_a_connection_is_judged() {
        let text = format!("{FIRST}{SECOND}{THIRD}");
        for piece in [1, 2, 7, 50, 1000] {
            let (result, out, seen) = run(text.as_bytes(), piece);
            assert_eq!(result, Ok(()));
            assert_eq!(out, text);
            assert_eq!(seen, ["POST /a", "PUT /b", "GET /c"]);
        }
    }

    #[rstest]
    #[case::refused("DELETE / HTTP/1.1\r\nHost: api.example\r\n\r\n", Reason::MethodNotAllowed)]
    #[case::overridden(
        "POST / HTTP/1.1\r\nHost: api.example\r\nX-HTTP-Method-Override: delete\r\n\r\n",
        Reason::MethodNotAllowed
    )]
    #[case::other_host("GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", Reason::NameMismatch)]
    #[case::no_host("GET / HTTP/1.1\r\n\r\n", Reason::NameMismatch)]
    #[case::absolute("GET http://other.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n", Reason::NameMismatch)]
    #[case::tunnel(
        "CONNECT other.example:443 HTTP/1.1\r\nHost: api.example\r\n\r\n",
        Reason::MethodNotAllowed
    )]
    #[case::websocket(
        "GET / HTTP/1.1\r\nHost: api.example\r\nUpgrade: websocket\r\n\r\n",
        Reason::ProtocolNotAllowed
    )]
    #[case::bare_lf("GET / HTTP/1.1\nHost: api.example\n\n", Reason::Malformed)]
    #[case::both(
        "POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        Reason::Malformed
    )]
    #[case::bad_chunk(
        "POST / HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n1;x\ny\r\na",
        Reason::Malformed
    )]
    #[case::tls("\x16\x03\x01\x02\0\x01", Reason::Malformed)]
    fn a_later_request_is_not_trusted_for_the_first(#[case] text: &str, #[case] reason: Reason) {
        for before in ["", FIRST, SECOND] {
            let whole = format!("{before}{text}");
            for piece in [1, 1000] {
                let (result, out, _) = run(whole.as_bytes(), piece);
                assert_eq!(result.unwrap_err().cause, Cause::Policy(reason), "{whole:?}");
                // Of the bad request at most a head that was good goes on, never what follows the fault.
                assert!(!out.contains("other.example") && !out.contains("websocket"), "{out:?}");
                assert!(out.starts_with(before), "{out:?}");
            }
        }
    }

    #[test]
    fn nothing_follows_a_body_where_requests_are_told_apart() {
        for piece in [1, 7, 1000] {
            let mut inspector = Inspector::new("api.example".parse().unwrap(), 80, Box::new(Strict));
            let mut out = Vec::new();
            let mut push = |text: &str, out: &mut Vec<u8>| {
                text.as_bytes().chunks(piece).try_for_each(|piece| inspector.push(piece, out))
            };
            push(THIRD, &mut out).unwrap();
            push(THIRD, &mut out).unwrap();
            push(FIRST, &mut out).unwrap();
            let sent = out.len();
            assert!(push(THIRD, &mut out).unwrap_err().message.contains("open another one"));
            assert_eq!(out.len(), sent);
            assert!(String::from_utf8(out).unwrap().ends_with("\r\nConnection: close\r\n\r\nabc"));
        }
    }

    #[test]
    fn nothing_follows_a_refusal() {
        let ((mut inspector, _), mut out) = (inspector(), Vec::new());
        inspector.push(b"DELETE / HTTP/1.1\r\nHost: api.example\r\n\r\n", &mut out).unwrap_err();
        assert!(inspector.push(THIRD.as_bytes(), &mut out).is_err());
        assert_eq!(out, b"");
    }

    #[test]
    fn a_head_that_does_not_end_is_refused() {
        let ((mut inspector, _), mut out) = (inspector(), Vec::new());
        let mut result = inspector.push(b"GET / HTTP/1.1\r\nA: ", &mut out);
        assert!(inspector.in_head());
        for _ in 0..20 {
            result = result.and_then(|()| inspector.push(&[b'a'; 1024], &mut out));
        }
        assert_eq!(result.unwrap_err().cause, Cause::Policy(Reason::Malformed));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_goes_on_is_requests_for_the_name(
            parts in prop::collection::vec(prop_oneof![
                Just(FIRST.to_owned()),
                Just(SECOND.to_owned()),
                Just(THIRD.to_owned()),
                "(GET|PUT) (/|http://(api|b)[.]example/) HTTP/1[.][01]\r\n(H|h)ost: ?(api|b)[.]example(\r)?\n(Content-Length: [0-9]|Transfer-Encoding: chunked|X: y|Host: b[.]example)\r\n\r\n[0-9a\r\n]{0,9}",
            ], 0..5),
            piece in 1..60_usize,
        ) {
            let text = parts.concat();
            let (_, out, seen) = run(text.as_bytes(), piece);
            // A second pass over what went on, as a server makes it: the same requests, each for the one host.
            let (again, same, seen_again) = run(out.as_bytes(), 1000);
            prop_assert_eq!(again, Ok(()));
            prop_assert_eq!(&same, &out);
            prop_assert_eq!(seen_again, seen);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, piece in 1..20_usize) {
            let _ = run(&bytes, piece);
        }
    }
}
