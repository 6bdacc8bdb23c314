//! What name servers said, reduced to what is used: who writes a zone may put thousands of addresses into one answer.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{RData, RecordType};

use crate::policy::HostName;

/// Addresses of one family that are used.
const MAX_ADDRESSES: usize = 8;

/// Answers that are kept: with the longest of names some 4 MiB.
const MAX_ANSWERS: usize = 8192;

/// Longest time for which an answer is kept.
const MAX_TTL: Duration = Duration::from_mins(5);

/// How long a name is believed to have no addresses of a family.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(30);

/// Addresses of one family, in the order of the answer; none where the name server said that there are none.
pub type Addresses = Arc<[IpAddr]>;

type Question = (HostName, RecordType);

/// The answers, each until its end.
#[derive(Debug, Default)]
pub struct Answers(Mutex<HashMap<Question, (Addresses, Instant)>>);

impl Answers {
    /// The answer that is still good.
    pub fn get(&self, name: &HostName, family: RecordType, now: Instant) -> Option<Addresses> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (addresses, _) = known.get(&(name.clone(), family)).filter(|(_, until)| now < *until)?;
        Some(Arc::clone(addresses))
    }

    /// Takes what was answered, and keeps it for as long as it says.
    pub fn take(
        &self,
        name: &HostName,
        family: RecordType,
        answer: Result<Lookup, NetError>,
        now: Instant,
    ) -> Result<Addresses, NetError> {
        let (addresses, ttl) = match answer {
            Ok(lookup) => reduced(&lookup),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let ttl = none.negative_ttl.map_or(Duration::ZERO, |ttl| Duration::from_secs(ttl.into()));
                (Addresses::default(), ttl.min(MAX_NEGATIVE_TTL))
            }
            Err(error) => return Err(error),
        };
        if !ttl.is_zero() {
            self.keep((name.clone(), family), Arc::clone(&addresses), now, ttl);
        }
        Ok(addresses)
    }

    fn keep(&self, question: Question, addresses: Addresses, now: Instant, ttl: Duration) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_ANSWERS {
            known.retain(|_, (_, until)| now < *until);
        }
        // One sandbox with a wildcard can fill it: it must not keep the others' answers out, nor have all of them looked
        // through with each of its own.
        if known.len() >= MAX_ANSWERS / 4 * 3 {
            known.clear();
        }
        known.insert(question, (addresses, now + ttl));
    }
}

/// The addresses that are used, and for how long.
fn reduced(lookup: &Lookup) -> (Addresses, Duration) {
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    let records = lookup.answers();
    let addresses = records.iter().filter_map(|record| address(&record.data)).take(MAX_ADDRESSES).collect();
    let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0);
    (addresses, Duration::from_secs(ttl.into()).min(MAX_TTL))
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::Query;
    use hickory_resolver::proto::rr::rdata::{A, CNAME};
    use hickory_resolver::proto::rr::{Name, Record};

    use super::*;

    fn lookup(records: u32, ttl: u32) -> Lookup {
        let name = Name::from_ascii("a.example.").unwrap();
        let alias = Record::from_rdata(name.clone(), 3600, RData::CNAME(CNAME(name.clone())));
        let record = |n: u32| Record::from_rdata(name.clone(), ttl, RData::A(A(n.into())));
        let answers = std::iter::once(alias).chain((0..records).map(record));
        Lookup::new_with_max_ttl(Query::query(name.clone(), RecordType::A), answers)
    }

    #[test]
    fn few_addresses_of_a_large_answer_are_kept_for_as_long_as_it_says() {
        let (answers, now) = (Answers::default(), Instant::now());
        let name: HostName = "a.example".parse().unwrap();
        for (ttl, kept) in [(60, 60), (86_400, 300)] {
            let taken = answers.take(&name, RecordType::A, Ok(lookup(4000, ttl)), now).unwrap();
            assert_eq!(taken.len(), MAX_ADDRESSES);
            let at = |seconds| answers.get(&name, RecordType::A, now + Duration::from_secs(seconds));
            assert_eq!(at(kept - 1), Some(taken));
            assert_eq!(at(kept), None);
            assert_eq!(answers.get(&name, RecordType::AAAA, now), None);
        }
        let none = answers.take(&"b.example".parse().unwrap(), RecordType::A, Ok(lookup(1, 0)), now).unwrap();
        assert_eq!(none.len(), 1);
        assert_eq!(answers.get(&"b.example".parse().unwrap(), RecordType::A, now), None, "no TTL, no memory");
    }

    #[test]
    fn many_names_of_one_sandbox_keep_no_other_out() {
        let (answers, now) = (Answers::default(), Instant::now());
        let name = |n: usize| format!("n{n}.example").parse::<HostName>().unwrap();
        for n in 0..3 * MAX_ANSWERS {
            answers.take(&name(n), RecordType::A, Ok(lookup(1, 60)), now).unwrap();
            assert!(answers.get(&name(n), RecordType::A, now).is_some());
        }
        assert!(answers.0.lock().unwrap().len() <= MAX_ANSWERS);
    }
}
