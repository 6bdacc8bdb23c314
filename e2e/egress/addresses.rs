//! Where a name may lead to: never to an address that is not the Internet's, whatever the name server says.
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use super::{all_done, host, identity::AUDIENCE, none_done, tcp, tried};
use crate::support::{Test, agent, internet::ALLOWED, sandbox::LIFE, secs, shared, wait_for};

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

/// E27: a resolver that says nothing, that there is no such name, that it cannot, or whose answer is somebody else's.
#[test]
fn a_name_without_answer_is_closed_and_says_so() {
    shared("egress-unresolved", |test| async move {
        test.probe().await;
        let names = ["nowhere", "silent", "broken", "forged"];
        let mut script = "trial('one', lambda: http('one.asbx.test'))\n".to_owned();
        for name in names {
            script += &format!("trial('{name}', lambda: http('{name}.asbx.test'))\n");
            script += &format!("trial('{name}-proxy', lambda: by_proxy('{name}.asbx.test:80'))\n");
        }
        script += "trial('one-after', lambda: http('one.asbx.test'))";
        test.agent("agent", &script, &[host("*.asbx.test", &[80])], json!({"timeout": "3m"})).await;
        let outcome = test.wait_status("agent", "an outcome", secs(150), |s| s.outcome.clone()).await;
        let said = agent::lines(&test.log("agent").await);
        assert_eq!(outcome.reason, "Completed", "{outcome:?} {said:#?}");
        all_done(&said, &["one", "one-after"]);
        none_done(&said, &names);
        for name in names {
            let (done, why) = tried(&said, &format!("{name}-proxy"));
            let why = why.as_str().unwrap();
            let clear = why.starts_with("ValueError: 502") && why.contains("ResolutionFailed");
            assert!(!done && clear && why.contains(&format!("{name}.asbx.test")), "{why}");
        }
        let note = "nowhere.asbx.test:80 not reached (ResolutionFailed)";
        test.event("agent", "EgressFailed", note).await;
    });
}

impl Test {
    /// A gateway beside the others, with their settings but that no range is reachable; answers its name and address.
    /// Nobody but a test asks it, and it ends by itself.
    async fn gateway_without_exceptions(&self) -> (String, String) {
        let gateway = self.system::<Deployment>().get("agentsandbox-gateway").await.unwrap();
        let mut spec = gateway.spec.template.spec.unwrap();
        let arguments = spec.containers[0].args.as_mut().unwrap();
        let before = arguments.len();
        arguments.retain(|argument| !argument.starts_with("--reachable-cidr"));
        assert_eq!(arguments.len() + 1, before, "the gateway of the tests has exceptions: {arguments:?}");
        spec.restart_policy = Some("Never".to_owned());
        spec.active_deadline_seconds = Some(240);
        let metadata =
            ObjectMeta { name: Some(format!("{}-gateway", self.namespace)), ..ObjectMeta::default() };
        let pods: Api<Pod> = self.system();
        let pod = Pod { metadata, spec: Some(spec), status: None };
        let name = pods.create(&PostParams::default(), &pod).await.unwrap().metadata.name.unwrap();
        let address = wait_for("the gateway without exceptions", LIFE, || async {
            let status = pods.get(&name).await.unwrap().status?;
            let ready = status.conditions?.iter().any(|c| c.type_ == "Ready" && c.status == "True");
            status.pod_ip.filter(|_| ready)
        })
        .await;
        (name, address)
    }
}

/// Addresses for documentation are no part of the Internet: without the administrator's `gateway.reachableCidrs`, which the
/// installed gateway has, no name may lead there.
#[test]
fn a_range_that_is_not_global_is_reached_only_where_the_administrator_says_so() {
    shared("egress-ranges", |test| async move {
        let spec = json!({"timeout": "3m", "network": {"egress": [tcp("one.asbx.test")]}});
        test.sandbox("agent", "time.sleep(150)", spec).await;
        test.running("agent").await;
        let token = test.token_of(&test.pod_name("agent").await, AUDIENCE).await;
        let (name, address) = test.gateway_without_exceptions().await;
        let script = test.asking().await
            + &format!(
                "attempt('without', lambda: ask('{token}', gateway='{address}'))\nattempt('with', lambda: ask('{token}'))"
            );
        let said = test.control("control", &script).await;
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        test.system::<Pod>().delete(&name, &now).await.unwrap();
        assert!(agent::is_done(&said, "with"), "{said:#?}");
        let line = agent::probe(&said, "without");
        let why = line["error"].as_str().unwrap();
        assert!(why.contains(" 403 ") && why.contains("AddressRefused"), "{line}");
        // Of which kind, and not which: it might be inside.
        assert!(why.contains("Documentation") && !why.contains(ALLOWED), "{line}");
    });
}
