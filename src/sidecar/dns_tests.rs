//! The name server, packet by packet and over sockets.
use std::sync::Mutex;

use proptest::prelude::*;
use rstest::rstest;
use tokio::io::AsyncReadExt;

use super::*;

#[derive(Default)]
struct Fake {
    refused: Mutex<Vec<String>>,
}

const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 64, 1, 7);

impl Directory for Fake {
    fn allows(&self, name: &HostName) -> Result<(), String> {
        if name.as_str().ends_with("allowed.example") { Ok(()) } else { Err("NoRule".to_owned()) }
    }
    fn address(&self, name: &HostName) -> Result<Ipv4Addr, String> {
        if name.as_str().starts_with("full.") { Err("TooMany".to_owned()) } else { Ok(ADDRESS) }
    }
    fn name(&self, address: Ipv4Addr) -> Option<HostName> {
        (address == ADDRESS).then(|| HostName::parse("allowed.example").unwrap())
    }
    fn refused(&self, name: &str, kind: &str, reason: &str) {
        self.refused.lock().unwrap().push(format!("{name} {kind} {reason}"));
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask(message: &Message) -> Option<Message> {
    let reply = answer(&message.to_vec().unwrap(), &Fake::default())?;
    Some(Message::from_vec(&reply).unwrap())
}

#[rstest]
#[case("allowed.example.")]
#[case("AlLoWeD.eXample.")]
#[case("www.allowed.example.")]
fn allowed_names_have_an_address(#[case] name: &str) {
    let reply = ask(&query(name, RecordType::A)).unwrap();
    assert_eq!(reply.metadata.id, 77);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.metadata.recursion_desired && reply.metadata.recursion_available);
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].data, RData::A(A(ADDRESS)));
    assert_eq!(reply.answers[0].ttl, TTL);
    // Clients that spread capitals over their question look for them in the answer.
    assert_eq!(reply.queries[0].name().to_ascii(), name);
    assert_eq!(reply.answers[0].name.to_ascii(), name);
}

#[rstest]
fn other_records_of_an_allowed_name_are_none(
    #[values(
        RecordType::AAAA,
        RecordType::HTTPS,
        RecordType::SVCB,
        RecordType::TXT,
        RecordType::MX,
        RecordType::SOA,
        RecordType::NS,
        RecordType::CNAME,
        RecordType::SRV,
        RecordType::Unknown(4711)
    )]
    kind: RecordType,
) {
    let reply = ask(&query("allowed.example.", kind)).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers.is_empty());
    let RData::SOA(soa) = &reply.authorities[0].data else { panic!() };
    assert_eq!((soa.minimum, reply.authorities[0].ttl), (TTL, TTL));
}

#[rstest]
#[case::other("other.example.", "NoRule")]
#[case::with_a_search_suffix("allowed.example.team.svc.cluster.local.", "NoRule")]
#[case::root(".", "InvalidName")]
#[case::escaped_dot("evil\\.allowed.example.", "InvalidName")]
#[case::metadata("metadata.google.internal.", "NoRule")]
#[case::reverse_of_others("8.8.8.8.in-addr.arpa.", "NoRule")]
fn everything_else_is_refused_and_told(#[case] name: &str, #[case] reason: &str) {
    for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::PTR, RecordType::ANY] {
        let fake = Fake::default();
        let reply = answer(&query(name, kind).to_vec().unwrap(), &fake).unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{name} {kind}");
        assert!(reply.answers.is_empty() && reply.authorities.is_empty());
        let told = fake.refused.lock().unwrap();
        assert!(told.len() == 1 && told[0].ends_with(&format!("{kind} {reason}")), "{told:?}");
    }
}

#[rstest]
#[case::space(b"a b")]
#[case::nul(b"a\0")]
#[case::dot(b"evil.example")]
#[case::not_ascii(b"\xffa")]
#[case::escape(b"\\")]
fn odd_labels_are_not_repaired(#[case] label: &[u8]) {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    let name = Name::from_labels([label, b"allowed", b"example"]).unwrap();
    message.add_query(Query::query(name, RecordType::A));
    assert_eq!(ask(&message).unwrap().metadata.response_code, ResponseCode::Refused);
}

#[test]
fn an_address_leads_back_to_its_name() {
    let reply = ask(&query("7.1.64.127.in-addr.arpa.", RecordType::PTR)).unwrap();
    let RData::PTR(name) = &reply.answers[0].data else { panic!() };
    assert_eq!(name.0.to_ascii(), "allowed.example.");
}

#[test]
fn no_room_is_a_passing_failure() {
    let reply = ask(&query("full.allowed.example.", RecordType::A)).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    let reply = ask(&query("full.allowed.example.", RecordType::AAAA)).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
}

#[test]
fn edns_is_understood() {
    let mut message = query("allowed.example.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    message.set_edns(edns.clone());
    let reply = ask(&message).unwrap();
    assert_eq!(reply.edns.unwrap().max_payload(), PAYLOAD);
    assert_eq!(reply.answers.len(), 1);
    edns.set_version(1);
    message.set_edns(edns);
    let reply = ask(&message).unwrap();
    assert_eq!(u16::from(reply.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert!(reply.answers.is_empty());
    assert!(ask(&query("allowed.example.", RecordType::A)).unwrap().edns.is_none());
}

#[test]
fn what_is_no_query_gets_no_answer() {
    let plain = query("allowed.example.", RecordType::A);
    let mut response = plain.clone();
    response.metadata.message_type = MessageType::Response;
    let mut two = plain.clone();
    two.add_query(Query::query(Name::from_ascii("other.example.").unwrap(), RecordType::A));
    let mut answered = plain.clone();
    answered.add_answer(Record::from_rdata(Name::root(), 1, RData::A(A(ADDRESS))));
    for message in [&response, &two, &answered] {
        assert!(ask(message).is_none(), "{message}");
    }
    let bytes = plain.to_vec().unwrap();
    for length in 0..bytes.len() {
        assert!(answer(&bytes[..length], &Fake::default()).is_none(), "{length}");
    }
}

#[test]
fn other_operations_and_classes_are_not_for_us() {
    let mut message = query("allowed.example.", RecordType::A);
    message.metadata.op_code = OpCode::Notify;
    assert_eq!(ask(&message).unwrap().metadata.response_code, ResponseCode::NotImp);
    let mut message = query("allowed.example.", RecordType::TXT);
    message.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(ask(&message).unwrap().metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn both_transports_answer() {
    let (udp, tcp) = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let directory = Arc::new(Fake::default());
    tokio::spawn(serve_udp(udp, directory.clone()));
    tokio::spawn(serve_tcp(tcp, directory));
    let packet = query("allowed.example.", RecordType::A).to_vec().unwrap();

    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(udp_address).await.unwrap();
    client.send(b"nonsense").await.unwrap();
    client.send(&packet).await.unwrap();
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().answers.len(), 1);

    let mut stream = TcpStream::connect(tcp_address).await.unwrap();
    let mut framed = u16::try_from(packet.len()).unwrap().to_be_bytes().to_vec();
    framed.extend_from_slice(&packet);
    for _ in 0..3 {
        // In two pieces.
        stream.write_all(&framed[..5]).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(&framed[5..]).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 1);
    }
    for wrong in [&[0, 3, 1, 2, 3][..], &[255, 255]] {
        let mut stream = TcpStream::connect(tcp_address).await.unwrap();
        stream.write_all(wrong).await.unwrap();
        assert_eq!(stream.read(&mut buffer).await.unwrap_or(0), 0);
    }
}

proptest! {
    #[test]
    fn no_packet_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        answer(&bytes, &Fake::default());
    }

    /// With a header that gets as far as the parser.
    #[test]
    fn no_question_makes_it_panic(
        id: u16, flags: u8, additional in 0..3_u8, bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let [high, low] = id.to_be_bytes();
        let mut packet = vec![high, low, flags & 0x7f, 0, 0, 1, 0, 0, 0, 0, 0, additional];
        packet.extend_from_slice(&bytes);
        if let Some(reply) = answer(&packet, &Fake::default()) {
            prop_assert_eq!(Message::from_vec(&reply).unwrap().metadata.id, id);
        }
    }

    #[test]
    fn a_broken_query_never_answers_an_address_of_another_name(
        at in 12..40_usize, byte: u8, label in "[a-z]{1,20}",
    ) {
        let mut packet = query(&format!("{label}.allowed.example."), RecordType::A).to_vec().unwrap();
        let end = packet.len();
        packet[at % end] = byte;
        if let Some(reply) = answer(&packet, &Fake::default()) {
            let reply = Message::from_vec(&reply).unwrap();
            if !reply.answers.is_empty() && reply.queries[0].query_type() == RecordType::A {
                prop_assert!(HostName::parse(&reply.queries[0].name().to_ascii()).unwrap().as_str().ends_with("allowed.example"));
            }
        }
    }
}
