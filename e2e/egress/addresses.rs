//! Where a name may lead to: never to an address that is not the Internet's, whatever the name server says.
use super::{all_done, host, none_done, tried};
use crate::support::{internet::ALLOWED, shared};

/// E8, E9, E10: private, metadata, loopback, mapped and translated addresses.
#[test]
fn a_name_that_leads_inside_is_refused() {
    shared("egress-inside", |test| async move {
        test.probe().await;
        let names = ["private", "metadata", "loopback", "zero", "mapped", "nat64"];
        let ports = [80, 443, 8080, 8443];
        let mut script = "trial('mixed', lambda: http('mixed.asbx.test'))\n".to_owned();
        let mut refused = Vec::new();
        for name in names {
            for port in ports {
                script += &format!("trial('{name}-{port}', lambda: http('{name}.asbx.test', {port}))\n");
                refused.push(format!("{name}-{port}"));
            }
        }
        let control = test.control_tries("trial('metadata', lambda: http('metadata.asbx.test'))").await;
        all_done(&control, &["metadata"]);
        let said = test.tries(&script, &[host("*.asbx.test", &ports)]).await;
        none_done(&said, &refused.iter().map(String::as_str).collect::<Vec<_>>());
        // Of two addresses the one that may be reached is.
        assert!(tried(&said, "mixed").1.as_str().unwrap().contains(ALLOWED), "{said:#?}");
    });
}

/// E8: the address that was vetted is the one that is dialled.
#[test]
fn a_name_that_turns_inside_is_refused() {
    shared("egress-rebind", |test| async move {
        test.probe().await;
        let script = "for i in range(6):\n    trial(f'rebind-{i}', lambda: http('rebind.asbx.test'))\n    time.sleep(0.3)";
        let said = test.tries(script, &[host("rebind.asbx.test", &[80])]).await;
        // The first answer of the name server is public, every later one is not.
        none_done(&said, &["rebind-3", "rebind-4", "rebind-5"]);
        for line in &said {
            assert!(line["value"].is_null() || line["value"].as_str().unwrap().contains(ALLOWED), "{line}");
        }
    });
}

/// E1: an address is not a name.
#[test]
fn addresses_are_no_way_out() {
    shared("egress-literal", |test| async move {
        test.probe().await;
        let script = format!(
            "trial('direct', lambda: http('{ALLOWED}'))\n\
             trial('absolute', lambda: absolute('http://{ALLOWED}/', '{ALLOWED}'))\n\
             trial('named', lambda: absolute('http://one.asbx.test/', 'one.asbx.test'))"
        );
        let control = test.control_tries(&format!("trial('direct', lambda: http('{ALLOWED}'))")).await;
        all_done(&control, &["direct"]);
        let said = test.tries(&script, &[host("one.asbx.test", &[80])]).await;
        all_done(&said, &["named"]);
        none_done(&said, &["direct", "absolute"]);
    });
}

#[test]
fn a_name_without_answer_is_closed_and_says_so() {
    shared("egress-unresolved", |test| async move {
        test.probe().await;
        let script = "trial('nowhere', lambda: http('nowhere.asbx.test'))\n\
                      trial('silent', lambda: http('silent.asbx.test'))\n\
                      trial('proxy', lambda: by_proxy('nowhere.asbx.test:80'))\n\
                      trial('one', lambda: http('one.asbx.test'))";
        let said = test.tries(script, &[host("*.asbx.test", &[80])]).await;
        all_done(&said, &["one"]);
        none_done(&said, &["nowhere", "silent", "proxy"]);
        let why = tried(&said, "proxy").1.as_str().unwrap();
        assert!(why.contains("nowhere.asbx.test"), "{why}");
    });
}
