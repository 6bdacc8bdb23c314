//! What a token says of itself, before anybody has checked it. Anybody can write a token that says anything: this only tells
//! what is not worth a question to the API server, which alone says whose a token is.
use serde::Deserialize;

use super::base64url;
use super::tokens::{GOOD_WHILE_AWAY, PodClaim};
use crate::egress::wire::AUDIENCE;

#[derive(Deserialize)]
struct Claims {
    aud: Audience,
    exp: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    pod: Pod,
}

#[derive(Deserialize)]
struct Pod {
    name: String,
    uid: String,
}

/// The Pod that `token` says it is of, if it says that it is one for the gateway and has not long expired at `now`, in seconds
/// since 1970.
pub fn stated(token: &str, now: u64) -> Option<PodClaim> {
    let mut parts = token.split('.');
    let [Some(header), Some(payload), Some(signature), None] = std::array::from_fn(|_| parts.next()) else {
        return None;
    };
    let written = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if !written(header) || !written(signature) {
        return None;
    }
    let claims: Claims = serde_json::from_slice(&base64url::decode(payload)?).ok()?;
    let ours = match &claims.aud {
        Audience::One(audience) => audience == AUDIENCE,
        Audience::Many(audiences) => audiences.iter().any(|audience| audience == AUDIENCE),
    };
    // As long as a good answer may be believed, also after its token's end; and clocks differ.
    let expired = claims.exp.saturating_add(GOOD_WHILE_AWAY.as_secs()) < now;
    let Kubernetes { namespace, pod: Pod { name, uid } } = claims.kubernetes;
    (ours && !expired).then_some(PodClaim { namespace, name, uid })
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::audit::now_ms;

    /// What a token of this Pod says, as the API server writes it.
    fn claims(namespace: &str, name: &str, uid: &str) -> Value {
        let now = now_ms() / 1000;
        json!({
            "aud": [AUDIENCE], "exp": now + 600, "iat": now, "nbf": now, "iss": "https://kubernetes.default.svc",
            "jti": "x", "sub": format!("system:serviceaccount:{namespace}:default"),
            "kubernetes.io": {
                "namespace": namespace, "node": {"name": "n", "uid": "u"}, "pod": {"name": name, "uid": uid},
                "serviceaccount": {"name": "default", "uid": "u"},
            },
        })
    }

    fn token(claims: &Value, signature: &str) -> String {
        let header = base64url::encode(br#"{"alg":"RS256","kid":"x"}"#);
        format!("{header}.{}.{signature}", base64url::encode(claims.to_string().as_bytes()))
    }

    /// A token of this Pod with any signature.
    pub fn token_of(namespace: &str, name: &str, uid: &str, signature: &str) -> String {
        token(&claims(namespace, name, uid), signature)
    }

    #[test]
    fn a_token_says_whose_it_is() {
        let pod = PodClaim { namespace: "team-a".into(), name: "fix-0".into(), uid: "u-1".into() };
        let mut said = claims("team-a", "fix-0", "u-1");
        let end = said["exp"].as_u64().unwrap();
        assert_eq!(stated(&token(&said, "c2ln"), end), Some(pod.clone()));
        assert_eq!(stated(&token(&said, "c2ln"), end + 599), Some(pod.clone()), "the API server may be away");
        assert_eq!(stated(&token(&said, "c2ln"), end + 601), None, "expired");
        said["aud"] = json!(AUDIENCE);
        assert_eq!(stated(&token(&said, "c2ln"), end), Some(pod), "one audience");
    }

    #[test]
    fn what_says_anything_else_is_no_token() {
        let good = claims("team-a", "fix-0", "u-1");
        let now = good["iat"].as_u64().unwrap();
        for (pointer, value) in [
            ("/aud", json!(["https://kubernetes.default.svc"])),
            ("/aud", json!([])),
            ("/exp", json!("soon")),
            ("/exp", json!(-1)),
            ("/kubernetes.io/pod", json!(null)),
            ("/kubernetes.io/pod/uid", json!(7)),
            ("/kubernetes.io", json!({"namespace": "team-a"})),
        ] {
            let mut said = good.clone();
            *said.pointer_mut(pointer).unwrap() = value;
            assert_eq!(stated(&token(&said, "c2ln"), now), None, "{said}");
        }
        let whole = token(&good, "c2ln");
        let (unsigned, _) = whole.rsplit_once('.').unwrap();
        for text in [
            "",
            "good",
            "..",
            "a.b.c",
            "eyJhbGciOiJSUzI1NiJ9.e30.AAAA",
            unsigned,
            &format!("{unsigned}."),
            &format!("{unsigned}.a b"),
            &format!("{whole}.c2ln"),
            &format!(".{}", whole.split_once('.').unwrap().1),
        ] {
            assert_eq!(stated(text, now), None, "{text}");
        }
        assert!(stated(&whole, now).is_some());
    }
}
