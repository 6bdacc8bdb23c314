//! What may be said through a tunnel.
use serde_json::json;

use super::{all_done, host, none_done, tried};
use crate::support::shared;

/// E5: an encrypted ClientHello hides the name that counts.
#[test]
fn an_encrypted_hello_is_refused_unless_the_rule_allows_it() {
    shared("egress-ech", |test| async move {
        test.probe().await;
        let script = "trial('plain', lambda: first_record('one.asbx.test', hello('one.asbx.test')))\n\
                      trial('ech', lambda: first_record('one.asbx.test', hello('one.asbx.test', ech=True)))\n\
                      trial('ech-allowed', lambda: first_record('two.asbx.test', hello('two.asbx.test', ech=True)))";
        let two =
            json!({"host": "two.asbx.test", "ports": [443], "tls": {"allowEncryptedClientHello": true}});
        let said = test.tries(script, &[host("one.asbx.test", &[443]), two]).await;
        all_done(&said, &["plain", "ech-allowed"]);
        none_done(&said, &["ech"]);
    });
}

/// E13: one request may not hide another.
#[test]
fn requests_that_two_parsers_read_differently_are_refused() {
    shared("egress-smuggling", |test| async move {
        test.probe().await;
        let script = r"
def ask(head): return raw('one.asbx.test', 80, head)
h = b'Host: one.asbx.test\r\n'
end = b'Connection: close\r\n\r\n'
trial('fine', lambda: ask(b'GET / HTTP/1.1\r\n' + h + end))
trial('body', lambda: ask(b'POST / HTTP/1.1\r\n' + h + b'Content-Length: 3\r\n' + end + b'abc'))
trial('cl-te', lambda: ask(b'POST / HTTP/1.1\r\n' + h + b'Content-Length: 3\r\nTransfer-Encoding: chunked\r\n' + end + b'0\r\n\r\n'))
trial('two-cl', lambda: ask(b'POST / HTTP/1.1\r\n' + h + b'Content-Length: 3\r\nContent-Length: 4\r\n' + end + b'abcd'))
trial('two-hosts', lambda: ask(b'GET / HTTP/1.1\r\n' + h + b'Host: two.asbx.test\r\n' + end))
trial('no-host', lambda: ask(b'GET / HTTP/1.1\r\n' + end))
trial('fold', lambda: ask(b'GET / HTTP/1.1\r\n' + h + b'X: a\r\n b\r\n' + end))
trial('bare-lf', lambda: ask(b'GET / HTTP/1.1\n' + b'Host: one.asbx.test\n' + b'Connection: close\n\n'))
trial('space-colon', lambda: ask(b'GET / HTTP/1.1\r\nHost : one.asbx.test\r\n' + end))
def second(host):
    with connect('one.asbx.test', 80) as stream:
        stream.settimeout(LIMIT)
        stream.sendall(b'GET /first HTTP/1.1\r\nHost: one.asbx.test\r\n\r\n')
        answer = b''
        # Its head may come before its body.
        while b'path=/first' not in answer:
            part = stream.recv(4096)
            if not part:
                raise ValueError(f'the first request was not answered: {answer}')
            answer += part
        return request(stream, host, path='/second')
trial('kept', lambda: second('one.asbx.test'))
trial('kept-other', lambda: second('two.asbx.test'))
";
        let said = test.tries(script, &[host("one.asbx.test", &[80])]).await;
        all_done(&said, &["fine", "body", "kept"]);
        none_done(
            &said,
            &["cl-te", "two-cl", "two-hosts", "no-host", "fold", "bare-lf", "space-colon", "kept-other"],
        );
    });
}

/// E15: only what the rule says; E11: no datagrams at all.
#[test]
fn other_protocols_need_a_rule_that_says_so() {
    shared("egress-protocols", |test| async move {
        test.probe().await;
        let script = "trial('closed', lambda: echo(connect('one.asbx.test', 7000)))\n\
                      trial('tcp', lambda: echo(connect('two.asbx.test', 7000)))\n\
                      trial('socks', lambda: by_socks(b'two.asbx.test', 7000, echo))\n\
                      trial('ssh-on-443', lambda: echo(connect('one.asbx.test', 443), b'SSH-2.0-x\\r\\n'))";
        let two = json!({"host": "two.asbx.test", "ports": [7000], "protocol": "TCP"});
        let said = test.tries(script, &[host("one.asbx.test", &[443, 7000]), two]).await;
        all_done(&said, &["tcp", "socks"]);
        none_done(&said, &["closed", "ssh-on-443"]);
    });
}

#[test]
fn methods_and_paths_narrow_plain_http() {
    shared("egress-http-rules", |test| async move {
        test.probe().await;
        let script = "trial('get', lambda: http('one.asbx.test', path='/v1/x'))\n\
                      trial('post', lambda: http('one.asbx.test', path='/v1/x', method='POST'))\n\
                      trial('path', lambda: http('one.asbx.test', path='/v2'))\n\
                      trial('dots', lambda: http('one.asbx.test', path='/v1/../v2'))\n\
                      trial('after-body', lambda: after_body('one.asbx.test'))\n\
                      trial('after-body-control', lambda: after_body('two.asbx.test'))";
        // What some servers take for a request may be another's body.
        let after_body = r"
def after_body(host):
    with connect(host, 80) as stream:
        stream.settimeout(LIMIT)
        stream.sendall(f'GET /v1/first HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\r\nabc'.encode())
        answer = b''
        while b'path=/v1/first' not in answer:
            part = stream.recv(4096)
            if not part:
                raise EOFError('no first answer')
            answer += part
        return request(stream, host, path='/v1/second')
";
        let script = &format!("{after_body}{script}");
        let rule = json!({"host": "one.asbx.test", "ports": [80], "http": {"methods": ["GET"], "pathPrefixes": ["/v1/"]}});
        let said = test.tries(script, &[rule, host("two.asbx.test", &[80])]).await;
        all_done(&said, &["after-body-control"]);
        assert!(tried(&said, "get").1.as_str().unwrap().starts_with("HTTP/1.1 200"), "{said:#?}");
        none_done(&said, &["post", "path", "dots", "after-body"]);
        let why = tried(&said, "after-body").1.to_string();
        assert!(!why.contains("no first answer"), "{why}");
    });
}

/// A refusal can be read: the proxy says which host and how to ask for it.
#[test]
fn a_refusal_names_the_host_and_says_how_to_ask() {
    shared("egress-refusal", |test| async move {
        test.probe().await;
        let script = "trial('connect', lambda: by_proxy('two.asbx.test:443'))\n\
                      trial('absolute', lambda: absolute('http://two.asbx.test/', 'two.asbx.test'))";
        let said = test.tries(script, &[host("one.asbx.test", &[80])]).await;
        none_done(&said, &["connect", "absolute"]);
        for name in ["connect", "absolute"] {
            let why = tried(&said, name).1.as_str().unwrap();
            assert!(why.contains("403") && why.contains("two.asbx.test") && why.contains("egress"), "{why}");
        }
        let egress = test.status("agent").await.egress.expect("status.egress");
        assert!(egress.denied >= 2, "{egress:?}");
        assert!(egress.last_denied.is_some_and(|last| last.contains("two.asbx.test")));
    });
}
