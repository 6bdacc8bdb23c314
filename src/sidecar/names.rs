//! The address of each name inside the Pod.
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::policy::HostName;

/// Most names that get an address in a Pod's life. There are addresses in 127.64.0.0/10 for 256 times as many; what counts
/// is memory: up to a kilobyte each, for the name may have 253 bytes and is kept three times.
const MAX_NAMES: usize = 16_384;

/// Of them those that only names of their own in the policy get.
const RESERVED: usize = 4_096;

/// New names of wildcard rules at once.
const BURST: u32 = 256;

/// Time for one more.
const REFILL: Duration = Duration::from_secs(1);

/// Why a name gets no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAddress {
    /// There were too many names.
    TooMany,
    /// There were too many new names of wildcard rules in a short time.
    TooFast,
}

/// Names and their addresses. An address belongs to its first name as long as the Pod lives, so that whoever
/// remembers an address never reaches another name through it.
#[derive(Debug)]
pub struct Names {
    first: u32,
    addresses: HashMap<HostName, Ipv4Addr>,
    /// By address, from `first` on.
    taken: Vec<HostName>,
    tokens: u32,
    refilled: Instant,
}

impl Names {
    /// No names; the first gets the address `first`.
    pub fn new(first: Ipv4Addr) -> Self {
        Self {
            first: first.to_bits(),
            addresses: HashMap::new(),
            taken: Vec::new(),
            tokens: BURST,
            refilled: Instant::now(),
        }
    }

    /// The name with this address.
    pub fn name(&self, address: Ipv4Addr) -> Option<&HostName> {
        let index = address.to_bits().checked_sub(self.first)?;
        self.taken.get(usize::try_from(index).ok()?)
    }

    /// The address of `name`; a new one if it has none. `exact` is for a name that a rule has as it is.
    pub fn address(&mut self, name: &HostName, exact: bool, now: Instant) -> Result<Ipv4Addr, NoAddress> {
        if let Some(address) = self.addresses.get(name) {
            return Ok(*address);
        }
        let most = if exact { MAX_NAMES } else { MAX_NAMES - RESERVED };
        if self.taken.len() >= most {
            return Err(NoAddress::TooMany);
        }
        if !exact {
            self.spend(now)?;
        }
        let index = u32::try_from(self.taken.len()).map_err(|_| NoAddress::TooMany)?;
        let address = Ipv4Addr::from_bits(self.first.saturating_add(index));
        self.taken.push(name.clone());
        self.addresses.insert(name.clone(), address);
        Ok(address)
    }

    fn spend(&mut self, now: Instant) -> Result<(), NoAddress> {
        let passed = now.saturating_duration_since(self.refilled).as_secs() / REFILL.as_secs();
        let gained = u32::try_from(passed).unwrap_or(u32::MAX);
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(BURST);
            self.refilled += REFILL * gained;
        }
        self.tokens = self.tokens.checked_sub(1).ok_or(NoAddress::TooFast)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn name(index: usize) -> HostName {
        format!("n{index}.example").parse().unwrap()
    }

    #[test]
    fn addresses_are_stable_and_lead_back() {
        let mut names = Names::new(Ipv4Addr::new(127, 64, 1, 0));
        let now = Instant::now();
        for index in 0..300 {
            names.address(&name(index), true, now).unwrap();
        }
        assert_eq!(names.address(&name(0), false, now), Ok(Ipv4Addr::new(127, 64, 1, 0)));
        assert_eq!(names.address(&name(256), true, now), Ok(Ipv4Addr::new(127, 64, 2, 0)));
        assert_eq!(names.name(Ipv4Addr::new(127, 64, 2, 0)), Some(&name(256)));
        for other in [[127, 64, 0, 255], [127, 64, 2, 44], [127, 0, 0, 1], [8, 8, 8, 8]] {
            assert_eq!(names.name(other.into()), None);
        }
    }

    #[test]
    fn wildcards_are_slow_and_leave_room() {
        let mut names = Names::new(Ipv4Addr::new(127, 64, 1, 0));
        let mut now = Instant::now();
        let made = (0..1000).filter(|index| names.address(&name(*index), false, now).is_ok()).count();
        assert_eq!(made, 256);
        assert_eq!(names.address(&name(2000), false, now), Err(NoAddress::TooFast));
        assert!(names.address(&name(2000), true, now).is_ok());
        now += Duration::from_millis(3500);
        let made = (3000..4000).filter(|index| names.address(&name(*index), false, now).is_ok()).count();
        assert_eq!(made, 3);
        let mut index = 10_000;
        while names.address(&name(index), false, now) != Err(NoAddress::TooMany) {
            now += REFILL;
            index += 1;
        }
        assert_eq!(names.taken.len(), MAX_NAMES - RESERVED);
        while names.address(&name(index), true, now) != Err(NoAddress::TooMany) {
            index += 1;
        }
        assert_eq!(names.taken.len(), MAX_NAMES);
        let last = *names.addresses.get(&name(index - 1)).unwrap();
        assert!(last < Ipv4Addr::new(127, 128, 0, 0), "{last}");
    }
}
