//! Plain requests through the HTTP proxy.
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, BufReader};

use super::*;

/// A server that keeps its connections and answers with the request's body; it notes heads, and how many connections
/// came.
struct Origin {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

async fn origin() -> Origin {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = Origin {
        address: listener.local_addr().unwrap(),
        heads: Arc::default(),
        connections: Arc::default(),
    };
    let (heads, connections) = (Arc::clone(&origin.heads), Arc::clone(&origin.connections));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            *connections.lock().unwrap() += 1;
            tokio::spawn(serve(stream, Arc::clone(&heads)));
        }
    });
    origin
}

async fn serve(stream: TcpStream, heads: Arc<Mutex<Vec<String>>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        heads.lock().unwrap().push(head.clone());
        if head.contains("Expect: 100-continue") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        }
        let mut body = Vec::new();
        if let Some(length) = head.split("Content-Length: ").nth(1) {
            body.resize(length.split("\r\n").next().unwrap().parse().unwrap(), 0);
            stream.read_exact(&mut body).await.unwrap();
        } else if head.contains("Transfer-Encoding: chunked") {
            while !body.ends_with(b"0\r\n\r\n") {
                body.push(stream.read_u8().await.unwrap());
            }
        }
        let length = format!("Content-Length: {}", body.len());
        let (fields, body) = match head.split(' ').nth(1).unwrap() {
            "/chunked" => ("Transfer-Encoding: chunked".to_owned(), b"3\r\nabc\r\n0\r\n\r\n".to_vec()),
            "/until-end" => ("X-A: b".to_owned(), b"to the end".to_vec()),
            "/close" => (format!("{length}\r\nConnection: close"), body),
            "/both" => ("Transfer-Encoding: chunked\r\nContent-Length: 3".to_owned(), b"abc".to_vec()),
            "/short" => ("Content-Length: 10".to_owned(), b"abc".to_vec()),
            "/upgrade" => (String::new(), Vec::new()),
            _ if head.starts_with("HEAD ") => ("Content-Length: 77".to_owned(), Vec::new()),
            _ => (length, body),
        };
        let status = if head.contains("/upgrade") { "101 Switching" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\n{fields}\r\nKeep-Alive: timeout=5\r\nX-Own: 1\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        stream.flush().await.unwrap();
        if fields.contains("close") || ["/until-end", "/short"].iter().any(|path| head.contains(path)) {
            return;
        }
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    async fn new(case: &Case) -> Self {
        Self(BufReader::new(TcpStream::connect(case.plan.http).await.unwrap()))
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    async fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let count = soon(self.0.read_line(&mut head)).await.unwrap();
            assert!(count > 0, "the end after {head:?}");
        }
        head
    }

    async fn body(&mut self, length: usize) -> String {
        let mut body = vec![0; length];
        soon(self.0.read_exact(&mut body)).await.unwrap();
        String::from_utf8(body).unwrap()
    }

    async fn rest(&mut self) -> io::Result<String> {
        let mut text = String::new();
        soon(self.0.read_to_string(&mut text)).await.map(|_| text)
    }
}

async fn case() -> (Case, Origin) {
    let case = Case::new(update(1, &[("a.example", &[80, 8080]), ("b.example", &[80])])).await;
    let origin = origin().await;
    for target in ["a.example:80", "a.example:8080", "b.example:80"] {
        case.gateway.route(target, Route::To(origin.address));
    }
    (case, origin)
}

#[tokio::test]
async fn requests_are_sent_in_origin_form_through_one_tunnel_for_each_origin() {
    let (case, origin) = case().await;
    let mut client = Client::new(&case).await;
    for (url, host) in [
        ("http://a.example/x?y", "a.example"),
        ("http://A.example:80/z", "a.example:80"),
        ("http://a.example:8080/", "a.example:8080"),
        ("http://b.example/", "b.example"),
    ] {
        client
            .send(&format!(
                "POST {url} HTTP/1.1\r\nHost: {host}\r\nProxy-Connection: keep-alive\r\nX-Mine: 1\r\nContent-Length: 4\r\n\r\nbody"
            ))
            .await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("X-Own: 1"), "{head}");
        assert!(!head.contains("Keep-Alive"), "{head}");
        assert_eq!(client.body(4).await, "body");
    }
    let heads = origin.heads.lock().unwrap().clone();
    assert_eq!(heads[0], "POST /x?y HTTP/1.1\r\nHost: a.example\r\nX-Mine: 1\r\nContent-Length: 4\r\n\r\n");
    assert!(heads[1].starts_with("POST /z HTTP/1.1\r\nHost: a.example\r\n"));
    assert!(heads[2].starts_with("POST / HTTP/1.1\r\nHost: a.example:8080\r\n"));
    assert_eq!((*origin.connections.lock().unwrap(), case.gateway.connects().len()), (3, 3));
    assert!(case.gateway.connects()[0].contains("x-agentsandbox-via: http\r\n"));
}

#[tokio::test]
async fn bodies_of_every_kind_pass() {
    let (case, origin) = case().await;
    let mut client = Client::new(&case).await;
    client.send("GET http://a.example/chunked HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert!(client.head().await.contains("Transfer-Encoding: chunked\r\n"));
    assert_eq!(client.body(13).await, "3\r\nabc\r\n0\r\n\r\n");
    client.send("HEAD http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert!(client.head().await.contains("Content-Length: 77\r\n"));
    client
        .send("PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    client.send("5;ext\r\nhello\r\n0\r\nTrailer: x\r\n\r\n").await;
    client.head().await;
    assert_eq!(client.body(15).await, "5\r\nhello\r\n0\r\n\r\n");
    client.send("PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 100 Continue\r\n"));
    client.send("ok").await;
    client.head().await;
    assert_eq!(client.body(2).await, "ok");
    assert_eq!(*origin.connections.lock().unwrap(), 1);
    client.send("GET http://a.example/until-end HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert!(client.head().await.contains("Connection: close\r\n"));
    assert_eq!(client.rest().await.unwrap(), "to the end");
}

#[tokio::test]
async fn an_end_by_either_side_is_respected() {
    let (case, _origin) = case().await;
    for request in [
        "GET http://a.example/close HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n",
    ] {
        let mut client = Client::new(&case).await;
        client.send(request).await;
        assert!(client.head().await.contains("Connection: close\r\n"));
        assert_eq!(client.rest().await.unwrap(), "");
    }
}

#[tokio::test]
async fn answers_that_are_ambiguous_or_cut_do_not_pass() {
    let (case, _origin) = case().await;
    for path in ["/both", "/upgrade"] {
        let mut client = Client::new(&case).await;
        client.send(&format!("GET http://a.example{path} HTTP/1.1\r\nHost: a.example\r\n\r\n")).await;
        assert!(client.head().await.starts_with("HTTP/1.1 502 "));
    }
    let mut client = Client::new(&case).await;
    client.send("GET http://a.example/short HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    client.head().await;
    assert_eq!(client.rest().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_is_refused_says_how_to_ask() {
    let (case, origin) = case().await;
    let mut client = Client::new(&case).await;
    client.send("GET http://c.example/ HTTP/1.1\r\nHost: c.example\r\n\r\n").await;
    let head = client.head().await;
    assert!(
        head.starts_with("HTTP/1.1 403 ") && head.contains("X-Agentsandbox-Reason: NoRule\r\n"),
        "{head}"
    );
    assert!(client.rest().await.unwrap().contains("write host: c.example:80"));
    for wrong in [
        "GET http://a.example/ HTTP/1.1\r\nHost: c.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\nHost: a.example\r\n\r\n\r\n",
        "CONNECT a.example:80 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        let mut client = Client::new(&case).await;
        client.send(wrong).await;
        assert!(client.head().await.starts_with("HTTP/1.1 400 "), "{wrong}");
    }
    assert!(origin.heads.lock().unwrap().is_empty());
}

/// A second request on a kept connection is judged by itself.
#[tokio::test]
async fn a_kept_connection_cannot_be_turned_to_another_host() {
    let (case, origin) = case().await;
    let mut client = Client::new(&case).await;
    client.send("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    client.head().await;
    client.send("GET http://c.example/ HTTP/1.1\r\nHost: c.example\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 403 "));
    assert_eq!(origin.heads.lock().unwrap().len(), 1);
}
