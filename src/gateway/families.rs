//! Which family of addresses a name does not have. A resolver remembers that only where the name server says for how long,
//! and not at all where it says nothing: then every connection would wait for it.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::{Name, RecordType};

/// How long a family is not asked for.
const LACKING_FOR: Duration = Duration::from_secs(30);

/// Names that are remembered.
const MAX_NAMES: usize = 8192;

/// The families that names lack.
#[derive(Debug, Default)]
pub struct Families(Mutex<HashMap<Name, (RecordType, Instant)>>);

impl Families {
    /// The family that `name` lacks, if that is known.
    pub fn lacking(&self, name: &Name, now: Instant) -> Option<RecordType> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|(_, until)| now < *until).map(|(family, _)| *family)
    }

    /// Notes that `name` has addresses, and none of `family`.
    pub fn lacks(&self, name: Name, family: RecordType, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_NAMES {
            known.retain(|_, (_, until)| now < *until);
        }
        if known.len() < MAX_NAMES {
            known.insert(name, (family, now + LACKING_FOR));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_is_remembered_for_a_while_and_the_number_of_names_is_bounded() {
        let (families, now) = (Families::default(), Instant::now());
        let name = |number: usize| Name::from_ascii(format!("n{number}.example.")).unwrap();
        families.lacks(name(0), RecordType::AAAA, now);
        assert_eq!(families.lacking(&name(0), now), Some(RecordType::AAAA));
        assert_eq!(families.lacking(&name(1), now), None);
        let later = now + LACKING_FOR;
        assert_eq!(families.lacking(&name(0), later), None);
        for number in 1..MAX_NAMES + 10 {
            families.lacks(name(number), RecordType::A, now);
        }
        assert_eq!(families.0.lock().unwrap().len(), MAX_NAMES);
        families.lacks(name(MAX_NAMES + 10), RecordType::A, later);
        assert_eq!(families.0.lock().unwrap().len(), 1);
    }
}
