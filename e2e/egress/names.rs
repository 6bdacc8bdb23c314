//! Which names are reached, whatever the agent claims.
use serde_json::json;

use super::{all_done, host, none_done, tried};
use crate::support::shared;

#[test]
fn allowed_name_is_reached_and_every_other_is_not() {
    shared("egress-names", |test| async move {
        test.probe().await;
        let script = "trial('https', lambda: https('one.asbx.test'))\n\
                      trial('http', lambda: http('one.asbx.test'))\n\
                      trial('two', lambda: https('two.asbx.test'))\n\
                      trial('other', lambda: https('other.asbx.test'))\n\
                      trial('port', lambda: connect('one.asbx.test', 7000).close())";
        let control = test.control_tries(script).await;
        all_done(&control, &["https", "http", "two", "other", "port"]);
        let said = test.tries(script, &[host("one.asbx.test", &[80, 443])]).await;
        all_done(&said, &["https", "http"]);
        assert!(tried(&said, "https").1.as_str().unwrap().contains("sni=one.asbx.test"), "{said:#?}");
        none_done(&said, &["two", "other", "port"]);
    });
}

/// E2, E3, E4 within what a tunnel that is not opened can see: the server name and the host are those of the rule.
#[test]
fn another_name_of_the_same_address_is_not_reached() {
    shared("egress-same-address", |test| async move {
        test.probe().await;
        let script = "trial('one', lambda: https('one.asbx.test'))\n\
                      trial('sni', lambda: https('one.asbx.test', name='two.asbx.test'))\n\
                      trial('host', lambda: http('one.asbx.test', ask='two.asbx.test'))\n\
                      trial('no-sni', lambda: https('one.asbx.test', name='203.0.113.10'))\n\
                      trial('absolute', lambda: raw('one.asbx.test', 80, b'GET http://two.asbx.test/ HTTP/1.1\\r\\nHost: one.asbx.test\\r\\nConnection: close\\r\\n\\r\\n'))\n\
                      time.sleep(2)";
        let control = test.control_tries(script).await;
        all_done(&control, &["one", "sni", "host", "no-sni", "absolute"]);
        let said = test.tries(script, &[host("one.asbx.test", &[80, 443])]).await;
        all_done(&said, &["one"]);
        none_done(&said, &["sni", "host", "no-sni", "absolute"]);
        // What the gateway refused on tunnels that stood is counted in the Pod.
        let egress = test.status("agent").await.egress.expect("status.egress");
        assert!(egress.denied >= 4, "{egress:?}");
        assert!(egress.last_denied.as_ref().is_some_and(|l| l.starts_with("one.asbx.test:")), "{egress:?}");
    });
}

/// E14: names of one server with one certificate are not merged: each has an address of its own, over which only it is
/// asked for, though the other is allowed, too.
#[test]
fn names_of_one_server_stay_apart() {
    shared("egress-coalescing", |test| async move {
        test.probe().await;
        let script = r"
names = ('one.asbx.test', 'two.asbx.test')
trial('addresses', lambda: [a for name in names for a in resolve(name)])
for name, other in (names, names[::-1]):
    trial(f'{name} own', lambda: https(name))
    # As a client does that takes one connection for both: HTTP/1 by its Host, TLS by its server name, HTTP/2 at once.
    trial(f'{name} host', lambda: http(name, ask=other))
    trial(f'{name} sni', lambda: https(name, name=other))
    trial(f'{name} proxied', lambda: by_proxy(f'{name}:80', lambda s: request(s, other)))
    trial(f'{name} h2', lambda: raw(name, 80, b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + b'\0\0\0\4\0\0\0\0\0'))
";
        let control = test.control_tries(script).await;
        let same = tried(&control, "addresses").1.as_array().unwrap();
        assert!(same.len() == 2 && same[0] == same[1], "outside they have one address: {control:#?}");
        let rules = [host("one.asbx.test", &[80, 443]), host("two.asbx.test", &[80, 443])];
        let said = test.tries(script, &rules).await;
        let own = tried(&said, "addresses").1.as_array().unwrap();
        assert!(own.len() == 2 && own[0] != own[1], "each has one of its own: {said:#?}");
        for name in ["one.asbx.test", "two.asbx.test"] {
            all_done(&said, &[&format!("{name} own")]);
            all_done(
                &control,
                &["own", "host", "sni"].map(|what| format!("{name} {what}")).each_ref().map(|n| &**n),
            );
            let mixed = ["host", "sni", "proxied", "h2"].map(|what| format!("{name} {what}"));
            none_done(&said, &mixed.each_ref().map(|name| &**name));
        }
    });
}

#[test]
fn patterns_reach_as_deep_as_they_say() {
    shared("egress-patterns", |test| async move {
        test.probe().await;
        let script = "trial('one-deep', lambda: https('a.wild.asbx.test'))\n\
                      trial('bare', lambda: https('wild.asbx.test'))\n\
                      trial('sibling', lambda: https('one.asbx.test'))\n\
                      trial('upper', lambda: https('A.WILD.asbx.TEST'))";
        let said = test.tries(script, &[host("*.wild.asbx.test", &[443])]).await;
        all_done(&said, &["one-deep", "upper"]);
        none_done(&said, &["bare", "sibling"]);
    });
}

/// E12: no spelling gets past what another program reads in it.
#[test]
fn no_spelling_of_a_name_gets_past() {
    shared("egress-spellings", |test| async move {
        test.probe().await;
        let script = r"
trial('socks-name', lambda: by_socks(b'one.asbx.test', 7000, echo))
trial('proxy-name', lambda: by_proxy('one.asbx.test:7000', echo))
nasty = [b'two.asbx.test\0.one.asbx.test', b'one.asbx.test\0', b'one.asbx.test%00', b'user@one.asbx.test', b'203.0.113.11',
         b'0xcb.0.113.11', b'3405803787', b'one.asbx.test ', b'one..asbx.test', b'.one.asbx.test', b'one.asbx.test..',
         b'[::ffff:203.0.113.11]', b'one.asbx.test:7000', b'*.asbx.test', b'\xef\xbd\x8fne.asbx.test', b'two.asbx.test']
for i, name in enumerate(nasty):
    trial(f'socks-{i}', lambda: by_socks(name, 7000, echo))
    trial(f'proxy-{i}', lambda: by_proxy(name.decode('latin-1') + ':7000', echo))
trial('socks-address', lambda: by_socks('203.0.113.11', 7000, echo))
trial('proxy-address', lambda: by_proxy('203.0.113.11:7000', echo))
";
        let rule = json!({"host": "one.asbx.test", "ports": [7000], "protocol": "TCP"});
        let said = test.tries(script, &[rule]).await;
        all_done(&said, &["socks-name", "proxy-name"]);
        let refused: Vec<String> = (0..16)
            .flat_map(|i| [format!("socks-{i}"), format!("proxy-{i}")])
            .chain(["socks-address".into(), "proxy-address".into()])
            .collect();
        none_done(&said, &refused.iter().map(String::as_str).collect::<Vec<_>>());
    });
}

/// E6: the resolver in the Pod forwards nothing, and no other is reached.
#[test]
fn no_question_leaves_the_pod() {
    shared("egress-dns", |test| async move {
        test.probe().await;
        let script = "trial('direct', lambda: question('one.asbx.test', server='203.0.113.10'))\n\
                      trial('direct-tcp', lambda: question('one.asbx.test', server='203.0.113.10', tcp=True))";
        let control = test.control_tries(script).await;
        all_done(&control, &["direct", "direct-tcp"]);
        let own = "\ntrial('a', lambda: question('one.asbx.test'))\n\
                   trial('a-tcp', lambda: question('one.asbx.test', tcp=True))\n\
                   trial('aaaa', lambda: question('one.asbx.test', 28))\n\
                   trial('https', lambda: question('one.asbx.test', 65))\n\
                   trial('txt', lambda: question('secret.two.asbx.test', 16))\n\
                   trial('other', lambda: question('secret.two.asbx.test'))";
        let said = test.tries(&format!("{script}{own}"), &[host("one.asbx.test", &[443])]).await;
        none_done(&said, &["direct", "direct-tcp"]);
        for (name, want) in [
            ("a", json!([0, 1])),
            ("a-tcp", json!([0, 1])),
            ("aaaa", json!([0, 0])),
            ("https", json!([0, 0])),
            ("txt", json!([5, 0])),
            ("other", json!([5, 0])),
        ] {
            assert_eq!(tried(&said, name), (true, &want), "{name}: {said:#?}");
        }
        test.event("agent", "EgressDenied", "secret.two.asbx.test refused in the Pod (NoRule)").await;
    });
}

/// The agent's own servers keep every port of 127.0.0.1, also those of the rules.
#[test]
fn the_agents_own_servers_keep_their_ports() {
    shared("egress-own-ports", |test| async move {
        test.probe().await;
        let script = r"
import threading
def serve(port):
    server = socket.create_server(('127.0.0.1', port))
    def run():
        peer, _ = server.accept()
        peer.sendall(b'mine')
        peer.close()
    threading.Thread(target=run, daemon=True).start()
    return port
trial('bind-443', lambda: serve(443))
trial('bind-3128', lambda: serve(3128))
trial('own', lambda: connect('127.0.0.1', 443).recv(4).decode())
trial('proxy', lambda: by_proxy('one.asbx.test:443', lambda s: tls(s, 'one.asbx.test')))
trial('one', lambda: https('one.asbx.test'))
";
        let said = test.tries(script, &[host("one.asbx.test", &[443])]).await;
        all_done(&said, &["bind-443", "bind-3128", "own", "proxy", "one"]);
        assert_eq!(tried(&said, "own").1, "mine");
    });
}
