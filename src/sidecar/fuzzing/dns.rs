//! The name server.
use std::net::Ipv4Addr;
use std::sync::Mutex;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

use super::super::dns::{self, Directory};
use super::{Rules, is_own};
use crate::policy::HostName;

/// A query to the name server.
pub(crate) fn dns_packet(packet: &[u8]) -> bool {
    let rules = Rules::new();
    let Some(reply) = dns::answer(packet, &rules) else { return false };
    assert_eq!(packet[2] & 0x80, 0, "an answer was answered");
    let refused = *rules.refused.lock().unwrap();
    assert_eq!(dns::answer(packet, &rules).as_ref(), Some(&reply), "another answer to the same question");

    let asked = Message::from_vec(packet).unwrap();
    let read = Message::from_vec(&reply).unwrap();
    assert_eq!(reply[..2], packet[..2], "the id");
    assert_eq!(read.metadata.message_type, MessageType::Response);
    assert_eq!(read.metadata.op_code, asked.metadata.op_code);
    assert_eq!(read.metadata.recursion_desired, asked.metadata.recursion_desired);
    assert!(!read.metadata.truncation);
    assert_eq!(read.edns.is_some(), asked.edns.is_some());
    // What any client takes by UDP (RFC 1035, 4.2.1): nobody has to ask again by TCP.
    assert!(reply.len() <= 512, "{} bytes", reply.len());

    let ([question], [again]) = (asked.queries.as_slice(), read.queries.as_slice()) else {
        panic!("not one question")
    };
    assert!(again.name().eq_case(question.name()), "{again} for {question}");
    assert_eq!((again.query_type(), again.query_class()), (question.query_type(), question.query_class()));

    let name = host_name(question.name());
    let allowed = name.as_ref().is_some_and(|name| rules.allows(name).is_ok());
    let code = read.metadata.response_code;
    let failed = matches!(code, ResponseCode::Refused | ResponseCode::ServFail);
    assert_eq!(refused, usize::from(failed), "what is refused is told once");
    if code == ResponseCode::NoError {
        assert_eq!((asked.metadata.op_code, question.query_class()), (OpCode::Query, DNSClass::IN));
        assert_eq!(read.answers.len() + read.authorities.len(), 1, "{read}");
    } else {
        assert!(read.answers.is_empty() && read.authorities.is_empty(), "{read}");
    }
    for record in &read.answers {
        assert!(record.name.eq_case(question.name()) && record.dns_class == DNSClass::IN, "{record}");
        match &record.data {
            RData::A(address) => {
                assert!(matches!(question.query_type(), RecordType::A | RecordType::ANY), "{record}");
                assert!(allowed && is_own(address.0), "{record}");
                assert_eq!(rules.name(address.0), name, "an address of another name");
            }
            RData::PTR(target) => {
                assert_eq!(question.query_type(), RecordType::PTR);
                let name = host_name(&target.0).unwrap();
                let [a, b, c, d] = rules.address(&name).unwrap().octets();
                let reverse = Name::from_ascii(format!("{d}.{c}.{b}.{a}.in-addr.arpa.")).unwrap();
                assert_eq!(reverse, *question.name(), "the name of another address");
            }
            other => panic!("a record of another kind: {other}"),
        }
    }
    for record in &read.authorities {
        assert!(allowed && matches!(record.data, RData::SOA(_)), "{record}");
        assert!(record.name.eq_case(question.name()), "{record}");
    }
    code == ResponseCode::NoError
}

/// The name by its labels, and not by the text that the server makes of it.
fn host_name(name: &Name) -> Option<HostName> {
    let labels: Vec<&[u8]> = name.iter().collect();
    if labels.iter().any(|label| label.contains(&b'.')) {
        return None;
    }
    HostName::from_bytes(&labels.join(&b'.')).ok()
}

/// The name that the server looks up when it is asked for `labels`, which have dots between them.
pub(crate) fn asked_by_dns(labels: &[u8]) -> Option<HostName> {
    struct Last(Mutex<Option<HostName>>);
    impl Directory for Last {
        fn allows(&self, name: &HostName) -> Result<(), String> {
            *self.0.lock().unwrap() = Some(name.clone());
            Ok(())
        }
        fn address(&self, _: &HostName) -> Result<Ipv4Addr, String> {
            Err(String::new())
        }
        fn name(&self, _: Ipv4Addr) -> Option<HostName> {
            None
        }
        fn refused(&self, _: &str, _: &str, _: &str) {}
    }
    let mut packet = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in labels.split(|byte| *byte == b'.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label);
    }
    packet.extend(b"\0\0\x01\0\x01");
    let last = Last(Mutex::new(None));
    dns::answer(&packet, &last)?;
    last.0.into_inner().unwrap()
}
