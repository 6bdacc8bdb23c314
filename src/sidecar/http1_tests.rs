//! Heads and bodies, good and ambiguous.
use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn request(text: &str) -> Result<Request, BadMessage> {
    Request::parse(text.as_bytes())
}

#[rstest]
#[case::bare_line_feed("GET / HTTP/1.1\nHost: a\r\n\r\n")]
#[case::bare_carriage_return("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n")]
#[case::fold("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n")]
#[case::nul("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n")]
#[case::space_before_colon("GET / HTTP/1.1\r\nHost : a\r\n\r\n")]
#[case::version("GET / HTTP/2.0\r\nHost: a\r\n\r\n")]
#[case::spaces("GET  / HTTP/1.1\r\nHost: a\r\n\r\n")]
#[case::leading_line("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")]
#[case::two_heads("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n")]
#[case::not_ascii("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n")]
fn ambiguous_heads_are_refused(#[case] text: &str) {
    assert!(request(text).is_err(), "{text:?}");
}

#[rstest]
#[case("Content-Length: 5\r\n", Some(Framing::Length(5)))]
#[case("Transfer-Encoding: Chunked\r\n", Some(Framing::Chunked))]
#[case("", Some(Framing::Empty))]
#[case("Content-Length: 5\r\nContent-Length: 5\r\n", None)]
#[case("Content-Length: 5, 5\r\n", None)]
#[case("Content-Length: +5\r\n", None)]
#[case("Content-Length: \r\n", None)]
#[case("Content-Length: 99999999999999999999\r\n", None)]
#[case("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", None)]
#[case("Transfer-Encoding: gzip, chunked\r\n", None)]
#[case("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", None)]
#[case("Transfer-Encoding: \u{b}chunked\r\n", None)]
fn bodies_have_one_length(#[case] fields: &str, #[case] expected: Option<Framing>) {
    let parsed = request(&format!("POST / HTTP/1.1\r\n{fields}\r\n"));
    assert_eq!(parsed.and_then(|request| request.framing()).ok(), expected);
}

#[test]
fn answers_have_one_length_too() {
    let of = |text: &str, method| Response::parse(text.as_bytes()).unwrap().framing(method).ok();
    assert_eq!(of("HTTP/1.1 200 OK\r\n\r\n", "GET"), Some(Framing::UntilEnd));
    assert_eq!(of("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HEAD"), Some(Framing::Empty));
    assert_eq!(of("HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n", "GET"), Some(Framing::Empty));
    assert_eq!(of("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "GET"), None);
}

#[test]
fn what_is_for_one_connection_is_dropped() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: x-one, Host, content-length\r\nX-One: 1\r\nX-Two: 2\r\n\
                Proxy-Authorization: secret\r\nUpgrade: h2c\r\nTE: trailers\r\nContent-Length: 0\r\n\r\n";
    let mut fields = request(text).unwrap().fields;
    fields.drop_hop_by_hop();
    let names: Vec<&str> = fields.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["Host", "X-Two", "Content-Length"]);
}

#[test]
fn an_option_that_is_no_text_hides_no_other() {
    let head = b"GET / HTTP/1.1\r\nConnection: \xff, X-One ,close\r\nX-One: 1\r\nX-Two: 2\r\n\r\n";
    let mut fields = Request::parse(head).unwrap().fields;
    assert!(fields.lists("connection", "close"));
    fields.drop_hop_by_hop();
    assert_eq!(fields.0, [("X-Two".to_owned(), b"2".to_vec())]);
}

async fn copied(text: &[u8], framing: Framing) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut reader, mut written) = (Buffered::new(text), Vec::new());
    copy_body(&mut reader, &mut written, framing).await?;
    Ok((written, reader.data().to_vec()))
}

#[tokio::test]
async fn bodies_are_copied_and_not_more() {
    let both = |a: &[u8], b: &[u8]| Some((a.to_vec(), b.to_vec()));
    assert_eq!(copied(b"abcd", Framing::Length(2)).await.ok(), both(b"ab", b"cd"));
    assert_eq!(copied(b"abcd", Framing::UntilEnd).await.ok(), both(b"abcd", b""));
    assert_eq!(copied(b"a", Framing::Length(2)).await.ok(), None);
    let chunks = b"3;x=y\r\nabc\r\n0A\r\n0123456789\r\n0\r\nT: 1\r\n\r\nnext";
    let plain = b"3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n";
    assert_eq!(copied(chunks, Framing::Chunked).await.ok(), both(plain, b"next"));
    for wrong in
        ["3\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n", "-1\r\n", "\r\n", "1000000000000000\r\n", "3 \r\nabc\r\n"]
    {
        assert!(copied(wrong.as_bytes(), Framing::Chunked).await.is_err(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(bytes: Vec<u8>) {
        let _ = Request::parse(&bytes);
        let _ = Response::parse(&bytes);
        let _ = chunk_size(&bytes);
    }

    #[test]
    fn nothing_like_a_head_makes_the_parsers_panic(text in "(GET|CONNECT|HTTP/1.1) [ -~]{0,20}( HTTP/1.[01]| 200 OK)?\r\n([a-zA-Z-]{0,20}:[ -~\r\n\t]{0,20}\r\n){0,5}\r\n") {
        if let Ok(mut request) = Request::parse(text.as_bytes()) {
            let _ = request.framing();
            request.fields.drop_hop_by_hop();
            let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.target).into_bytes();
            request.fields.write_to(&mut head);
            head.extend_from_slice(b"\r\n");
            // What is written again means the same.
            let again = Request::parse(&head).unwrap();
            prop_assert_eq!(again.fields, request.fields);
        }
        let _ = Response::parse(text.as_bytes());
    }
}
