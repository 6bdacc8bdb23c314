use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;

use super::decide::{AUTHORITY_LIFE, LEAF_LIFE, is_taken};
use super::material::{BUNDLE, Certificate, Data, LEAF, LEAF_KEY, NEXT_KEY, SIGNING_KEY};
use super::*;

const DAY: i64 = 24 * 3600;
const NOW: i64 = 1_800_000_000;
const NAME: &str = "agentsandbox-gateway.agentsandbox-system.svc";

fn fresh() -> Held {
    advance(NOW, Held::default(), NAME).unwrap()
}

/// What the Secret would hold after the write.
fn stored(want: &BTreeMap<&'static str, Option<String>>) -> Data {
    new_secret("s", "Opaque", want).data.unwrap()
}

fn known(authority: &Authority) -> Vec<Certificate> {
    let pairs = [&authority.signer, &authority.next].into_iter().flatten().map(|p| p.certificate.clone());
    pairs.chain(authority.earlier.iter().cloned()).collect()
}

#[test]
fn what_is_written_is_what_is_read() {
    let held = fresh();
    let mut authority = held.authority.clone();
    authority.next = Some(make::authority(NOW + DAY, NAME).unwrap());
    authority.earlier = vec![make::authority(NOW - DAY, NAME).unwrap().certificate];
    assert_eq!(Authority::read(&stored(&authority.write())), authority);
    assert_eq!(read_leaf(&stored(&write_leaf(&held.leaf.clone().unwrap()))), held.leaf);
    assert_eq!(authority.bundle().matches("BEGIN CERTIFICATE").count(), 3);
    // The signer is the first in the bundle, and a key that is no longer there is taken off.
    assert!(authority.bundle().starts_with(&authority.signer.clone().unwrap().certificate.pem));
    let body = change(&Secret::default(), &held.authority.write());
    assert!(body["data"][NEXT_KEY].is_null() && body["data"][SIGNING_KEY].is_string());
}

#[test]
fn what_is_not_due_is_not_made() {
    let held = fresh();
    for days in [0, 1, 9] {
        assert_eq!(advance(NOW + days * DAY, held.clone(), NAME).unwrap(), held, "day {days}");
    }
    let later = advance(NOW + 10 * DAY, held.clone(), NAME).unwrap();
    assert_eq!(later.authority, held.authority);
    assert_ne!(later.leaf, held.leaf);
}

#[test]
fn the_authorities_are_renewed_with_an_overlap() {
    let held = fresh();
    let at = |days: i64| NOW + days * DAY;
    let mut staged = held.authority.clone();
    staged.next = Some(make::authority(at(280), NAME).unwrap());
    let mut promoted = staged.clone();
    promoted.earlier.extend(promoted.signer.take().map(|p| p.certificate));
    promoted.signer = promoted.next.take();
    let orphan = Authority { signer: None, ..staged.clone() };
    for (authority, now, want) in [
        (&Authority::default(), NOW, Renewal::Create),
        (&held.authority, NOW, Renewal::Keep),
        // A clock that is behind, or was ahead, is no reason to make anything.
        (&held.authority, NOW - 100 * DAY, Renewal::Keep),
        (&held.authority, at(274), Renewal::Keep),
        (&held.authority, at(275), Renewal::Stage),
        // Nobody renewed for long: the next one is still made known first, as long as the old one can sign.
        (&held.authority, at(363), Renewal::Stage),
        (&held.authority, at(364), Renewal::Create),
        (&held.authority, at(1000), Renewal::Create),
        (&staged, at(280), Renewal::Keep),
        (&staged, at(309), Renewal::Keep),
        (&staged, at(310), Renewal::Promote),
        (&staged, at(364), Renewal::Promote),
        (&staged, at(640), Renewal::Promote),
        (&staged, at(644), Renewal::Create),
        (&promoted, at(311), Renewal::Keep),
        (&promoted, at(364), Renewal::Keep),
        (&promoted, at(365), Renewal::Prune),
        // The key that signs is lost: the next one comes early.
        (&orphan, at(281), Renewal::Promote),
    ] {
        assert_eq!(renewal(now, authority), want, "{} days", (now - NOW) / DAY);
    }
}

#[test]
fn the_gateways_certificate_is_one_that_sidecars_take() {
    let held = fresh();
    let signer = held.authority.signer.clone().unwrap();
    let leaf = held.leaf.clone().unwrap();
    let other = make::authority(NOW, NAME).unwrap();
    let foreign = make::leaf(NOW, &other, NAME).unwrap();
    let swapped = Pair { key: foreign.key.clone(), ..leaf.clone() };
    let misnamed = make::leaf(NOW, &signer, "elsewhere.agentsandbox-system.svc").unwrap();
    for (leaf, now, due) in [
        (None, NOW, true),
        (Some(&leaf), NOW, false),
        (Some(&leaf), NOW + 10 * DAY - 1, false),
        (Some(&leaf), NOW + 10 * DAY, true),
        (Some(&leaf), NOW + LEAF_LIFE, true),
        // Not valid yet: the clock of the process that made it was ahead.
        (Some(&leaf), NOW - DAY, true),
        (Some(&foreign), NOW, true),
        (Some(&misnamed), NOW, true),
    ] {
        assert_eq!(leaf_is_due(now, &signer.certificate, leaf, NAME), due, "{}", now - NOW);
    }
    assert_eq!(read_leaf(&stored(&write_leaf(&swapped))), None);
    // An authority signs for the gateway's name and for no other.
    assert!(!is_taken(
        NOW,
        &[signer.certificate],
        &misnamed.certificate,
        "elsewhere.agentsandbox-system.svc"
    ));
}

#[test]
fn the_gateways_certificate_never_outlives_its_authority() {
    let signer = make::authority(NOW, NAME).unwrap();
    let late = make::leaf(NOW + AUTHORITY_LIFE - 2 * DAY, &signer, NAME).unwrap();
    assert_eq!(late.certificate.until, signer.certificate.until);
}

#[test]
fn what_cannot_be_read_is_made_anew() {
    let held = fresh();
    let good = stored(&held.authority.write());
    let of = |key: &str, text: &str| {
        let mut data = good.clone();
        data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
        data
    };
    let foreign = make::authority(NOW, NAME).unwrap();
    for data in [
        Data::new(),
        of(BUNDLE, ""),
        of(BUNDLE, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        of(SIGNING_KEY, "no key"),
        of(SIGNING_KEY, &foreign.key),
        Data::from([(BUNDLE.to_owned(), ByteString(vec![0xff, 0xfe]))]),
    ] {
        let read = Authority::read(&data);
        assert_eq!(read.signer, None, "{data:?}");
        let after = advance(NOW, Held { authority: read.clone(), leaf: held.leaf.clone() }, NAME).unwrap();
        assert!(after.authority.signer.is_some());
        assert_ne!(after.leaf, held.leaf, "no sidecar would take the old one from now on");
        // What sandboxes may still need is kept.
        assert_eq!(after.authority.earlier, read.earlier);
    }
    for data in [Data::new(), Data::from([(LEAF.to_owned(), ByteString(b"x".to_vec()))])] {
        assert_eq!(read_leaf(&data), None);
    }
    let mut half = stored(&write_leaf(&held.leaf.unwrap()));
    half.remove(LEAF_KEY);
    assert_eq!(read_leaf(&half), None);
}

/// Five years, looked at once a day: a sandbox that was made up to eight days ago always takes the gateway.
#[test]
fn every_sandbox_that_may_run_takes_every_certificate_that_may_be_served() {
    const LONGEST: usize = 8;
    let (mut held, mut changes) = (Held::default(), (0, 0));
    let mut bundles: Vec<Vec<Certificate>> = Vec::new();
    for day in 0..5 * 365 {
        let now = NOW + day * DAY;
        let after = advance(now, held.clone(), NAME).unwrap();
        changes.0 += i32::from(after.authority != held.authority);
        changes.1 += i32::from(after.leaf != held.leaf);
        // A gateway may not have read the new one yet.
        let served = [held.leaf.clone(), after.leaf.clone()];
        held = after;
        bundles.push(known(&held.authority));
        for bundle in bundles.iter().rev().take(LONGEST + 1).step_by(4) {
            for leaf in served.iter().flatten() {
                assert!(is_taken(now, bundle, &leaf.certificate, NAME), "day {day}");
            }
        }
        assert!(bundles.last().unwrap().len() <= 3);
        // Through the Secret and back nothing changes.
        assert_eq!(Authority::read(&stored(&held.authority.write())), held.authority);
    }
    // The first, and then three a life: made, promoted, the old one forgotten.
    assert!(changes.0 <= 1 + 3 * 6, "{changes:?}");
    assert!(changes.1 <= 5 * 365 / 10 + 10, "{changes:?}");
}

/// An API server that knows the two Secrets and nothing else, and remembers what was asked of it.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    secrets: BTreeMap<String, Value>,
    asked: Vec<String>,
}

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
        });
        Client::new(service, "operators")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or_default();
        let path = parts.uri.path().strip_prefix("/api/v1/namespaces/operators/secrets").unwrap();
        let name = body["metadata"]["name"].as_str().unwrap_or(path.trim_start_matches('/')).to_owned();
        let mut state = self.0.lock().unwrap();
        state.asked.push(format!("{} {name}", parts.method));
        let (code, answer) = match (parts.method, state.secrets.get_mut(&name)) {
            (Method::GET, Some(secret)) => (200, secret.clone()),
            (Method::POST, None) => {
                let mut secret = body;
                secret["metadata"]["resourceVersion"] = "1".into();
                secret["metadata"]["uid"] = "u".into();
                state.secrets.insert(name, secret.clone());
                (201, secret)
            }
            (Method::PATCH, Some(secret))
                if body["metadata"]["resourceVersion"] == secret["metadata"]["resourceVersion"] =>
            {
                for (key, value) in body["data"].as_object().unwrap() {
                    let data = secret["data"].as_object_mut().unwrap();
                    if value.is_null() {
                        data.remove(key)
                    } else {
                        data.insert(key.clone(), value.clone())
                    };
                }
                secret["metadata"]["resourceVersion"] = "2".into();
                (200, secret.clone())
            }
            (Method::GET, None) => (404, failure(404, "NotFound")),
            _ => (409, failure(409, "Conflict")),
        };
        let answer = Body::from(serde_json::to_vec(&answer).unwrap());
        Response::builder().status(StatusCode::from_u16(code).unwrap()).body(answer).unwrap()
    }

    /// What was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }
}

fn failure(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

const READS: [&str; 2] = ["GET agentsandbox-egress-ca", "GET agentsandbox-gateway-tls"];

#[tokio::test]
async fn secrets_are_written_when_it_is_due_and_by_the_leader_only() {
    let at = |days: i64| Timestamp::from_second(NOW + days * DAY).unwrap();
    let (server, fence) = (Server::default(), Fence::default());
    let keeper = Certificates::new(server.client(), "operators", NAME, fence.clone());
    assert!(matches!(keeper.ensure(at(0)).await, Err(Error::NotLeader)));
    assert_eq!(server.asked(), READS);

    fence.open_for(std::time::Duration::from_secs(600));
    let first = keeper.ensure(at(0)).await.unwrap();
    let created = ["POST agentsandbox-egress-ca", "POST agentsandbox-gateway-tls"];
    assert_eq!(server.asked(), [READS, created].concat());
    assert_eq!(first.bundle.matches("BEGIN CERTIFICATE").count(), 1);
    assert!(!first.bundle.contains("PRIVATE KEY"));
    assert_ne!(first.directory_key, [0; 32]);

    assert_eq!(keeper.ensure(at(1)).await.unwrap(), first);
    assert_eq!(server.asked(), READS);

    let renewed = keeper.ensure(at(10)).await.unwrap();
    assert_eq!(server.asked(), [READS.as_slice(), &["PATCH agentsandbox-gateway-tls"]].concat());
    assert_eq!((&renewed.bundle, renewed.leaf_until), (&first.bundle, first.leaf_until + 10 * DAY));

    // Staged, then promoted: the key of the next one moves, and its place is empty again.
    let staged = keeper.ensure(at(280)).await.unwrap();
    assert!(server.asked().contains(&"PATCH agentsandbox-egress-ca".to_owned()));
    assert_eq!(staged.bundle.matches("BEGIN CERTIFICATE").count(), 2);
    let promoted = keeper.ensure(at(311)).await.unwrap();
    assert_eq!(promoted.bundle.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(promoted.authority_until > first.authority_until);
    assert_eq!(renewed.directory_key, first.directory_key);
    assert_ne!(promoted.directory_key, first.directory_key);
    let keys: Vec<String> = {
        let state = server.0.lock().unwrap();
        state.secrets[AUTHORITY_SECRET]["data"].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(keys, [BUNDLE, SIGNING_KEY]);
}
