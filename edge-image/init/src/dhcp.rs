//! A DHCP client as a value: packets and time in, packets and addresses out. RFC 2131, as much as one interface needs.
//!
//! Differs from the RFC on purpose in one thing: an address whose lease ran out while no server answers is kept, and asking goes on.
//! A device whose DHCP server is down for a day must not take its pods off the network. A server that says no is obeyed at once.

use std::time::{Duration, Instant};

const CLIENT_HEADER: usize = 236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
/// Between tries; doubled up to the second.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A lease lasts hours: renewing it is never urgent.
const RENEW_RETRY: Duration = Duration::from_secs(30);
/// Servers that name no time, and those that name an odd one.
const LEASE_DEFAULT: u32 = 3600;
const LEASE_MIN: u32 = 60;
/// Servers kept of a list.
const SERVERS_MAX: usize = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: [u8; 4],
    pub mask: [u8; 4],
    pub gateway: Option<[u8; 4]>,
    pub dns: Vec<[u8; 4]>,
    pub ntp: Vec<[u8; 4]>,
    server: [u8; 4],
    seconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Broadcast this to port 67.
    Send(Vec<u8>),
    Configure(Lease),
    /// The server took the address back, or gave another one.
    Deconfigure,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Discovering,
    Requesting(Lease),
    /// `asked`: a renewal is under way, so an answer means something.
    Bound {
        lease: Lease,
        asked: bool,
    },
}

#[derive(Debug)]
pub struct Client {
    mac: [u8; 6],
    xid: u32,
    host: String,
    state: State,
    next: Option<Instant>,
    wait: Duration,
}

impl Client {
    /// `xid`: any number that other clients on the wire are unlikely to use.
    pub fn new(mac: [u8; 6], xid: u32, host: &str) -> Client {
        Client {
            mac,
            xid,
            host: host.chars().take(63).collect(),
            state: State::Discovering,
            next: None,
            wait: RETRY_FIRST,
        }
    }

    /// Called at least once a second.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        if self.next.is_some_and(|next| now < next) {
            return Vec::new();
        }
        let packet = match &mut self.state {
            State::Discovering => self.packet(DISCOVER, None),
            State::Requesting(lease) => {
                let lease = lease.clone();
                self.packet(REQUEST, Some((&lease, false)))
            }
            State::Bound { lease, asked } => {
                *asked = true;
                let lease = lease.clone();
                self.packet(REQUEST, Some((&lease, true)))
            }
        };
        self.next = Some(now + self.wait);
        // A server that offered and then fell silent: begin again.
        if matches!(self.state, State::Requesting(_)) && self.wait > RETRY_FIRST * 4 {
            self.restart();
        } else {
            self.wait = (self.wait * 2).min(RETRY_MAX);
        }
        vec![Action::Send(packet)]
    }

    /// The cable is in again, perhaps in another network: ask soon, and keep what we have until somebody answers.
    pub fn replugged(&mut self) {
        self.next = None;
        self.wait = RETRY_FIRST;
    }

    fn restart(&mut self) {
        self.state = State::Discovering;
        // Late answers to what was asked before do not count.
        self.xid = self.xid.wrapping_add(1);
        self.wait = RETRY_FIRST;
        self.next = None;
    }

    /// A packet from port 67.
    pub fn receive(&mut self, now: Instant, packet: &[u8]) -> Vec<Action> {
        let Some((kind, lease)) = parse(packet, self.xid, self.mac) else { return Vec::new() };
        match (kind, &self.state) {
            (OFFER, State::Discovering) => {
                self.state = State::Requesting(lease);
                self.wait = RETRY_FIRST;
                self.next = None;
                self.tick(now)
            }
            (ACK, State::Requesting(offer)) if offer.address == lease.address => self.bind(now, lease),
            (ACK, State::Bound { lease: old, asked: true }) => {
                let same = old.address == lease.address;
                let mut actions = if same { Vec::new() } else { vec![Action::Deconfigure] };
                actions.extend(self.bind(now, lease));
                actions
            }
            (NAK, State::Requesting(_)) => {
                self.restart();
                Vec::new()
            }
            (NAK, State::Bound { asked: true, .. }) => {
                self.restart();
                vec![Action::Deconfigure]
            }
            _ => Vec::new(),
        }
    }

    fn bind(&mut self, now: Instant, lease: Lease) -> Vec<Action> {
        // Renew at half of the lease's time.
        self.next = Some(now + Duration::from_secs(u64::from(lease.seconds) / 2));
        self.wait = RENEW_RETRY;
        self.state = State::Bound { lease: lease.clone(), asked: false };
        vec![Action::Configure(lease)]
    }

    fn packet(&self, kind: u8, about: Option<(&Lease, bool)>) -> Vec<u8> {
        let mut out = vec![0; CLIENT_HEADER];
        // Request, Ethernet, six bytes of address.
        out[..3].copy_from_slice(&[1, 1, 6]);
        out[4..8].copy_from_slice(&self.xid.to_be_bytes());
        // Answer by broadcast: we have no address that could be reached otherwise.
        out[10] = 0x80;
        out[28..34].copy_from_slice(&self.mac);
        out.extend_from_slice(&MAGIC);
        let mut option = |code: u8, value: &[u8]| {
            out.push(code);
            out.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(&value[..value.len().min(255)]);
        };
        option(53, &[kind]);
        if let Some((lease, renewing)) = about
            && !renewing
        {
            option(50, &lease.address);
            option(54, &lease.server);
        }
        let id: Vec<u8> = [1].into_iter().chain(self.mac).collect();
        option(61, &id);
        if !self.host.is_empty() {
            option(12, self.host.as_bytes());
        }
        // Mask, router, DNS, NTP, lease time.
        option(55, &[1, 3, 6, 42, 51]);
        out.push(255);
        if let Some((lease, true)) = about {
            out[12..16].copy_from_slice(&lease.address);
        }
        // Some relays drop what is shorter than BOOTP's packet.
        out.resize(out.len().max(300), 0);
        out
    }
}

/// Kind and content of a server's packet that is meant for us.
fn parse(packet: &[u8], xid: u32, mac: [u8; 6]) -> Option<(u8, Lease)> {
    if packet.first() != Some(&2) || packet.get(4..8)? != xid.to_be_bytes() || packet.get(28..34)? != mac {
        return None;
    }
    if packet.get(CLIENT_HEADER..CLIENT_HEADER + 4)? != MAGIC {
        return None;
    }
    let mut lease = Lease {
        address: packet.get(16..20)?.try_into().ok()?,
        mask: [255, 255, 255, 0],
        gateway: None,
        dns: Vec::new(),
        ntp: Vec::new(),
        server: [0; 4],
        seconds: LEASE_DEFAULT,
    };
    let mut kind = None;
    let mut rest = packet.get(CLIENT_HEADER + 4..)?;
    while let Some((&code, after)) = rest.split_first() {
        match code {
            0 => {
                rest = after;
                continue;
            }
            255 => break,
            _ => {}
        }
        let (&len, after) = after.split_first()?;
        let value = after.get(..usize::from(len))?;
        rest = after.get(usize::from(len)..)?;
        let one = || value.get(..4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        let all = || {
            value
                .chunks_exact(4)
                .take(SERVERS_MAX)
                .filter_map(|bytes| bytes.try_into().ok())
                .collect::<Vec<[u8; 4]>>()
        };
        match code {
            53 => kind = value.first().copied(),
            // A mask with holes is a mistake; the usual one serves better.
            1 => lease.mask = one().filter(|mask| is_mask(*mask)).unwrap_or(lease.mask),
            3 => lease.gateway = one(),
            6 => lease.dns = all(),
            42 => lease.ntp = all(),
            51 => lease.seconds = one().map_or(LEASE_DEFAULT, u32::from_be_bytes).max(LEASE_MIN),
            54 => lease.server = one()?,
            _ => {}
        }
    }
    Some((kind?, lease))
}

fn is_mask(mask: [u8; 4]) -> bool {
    let mask = u32::from_be_bytes(mask);
    mask != 0 && mask.leading_ones() + mask.trailing_zeros() == 32
}

/// Total for any input: what the fuzz test drives.
pub fn fuzz_dhcp(data: &[u8]) {
    let mut client = Client::new([0; 6], 0, "fuzz");
    let now = Instant::now();
    client.tick(now);
    client.receive(now, data);
    client.tick(now + Duration::from_secs(5));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn reply(kind: u8, xid: u32, seconds: u32) -> Vec<u8> {
        let mut out = vec![0; CLIENT_HEADER];
        out[..3].copy_from_slice(&[2, 1, 6]);
        out[4..8].copy_from_slice(&xid.to_be_bytes());
        out[16..20].copy_from_slice(&[10, 0, 2, 15]);
        out[28..34].copy_from_slice(&MAC);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[
            53, 1, kind, 0, 1, 4, 255, 255, 0, 0, 3, 4, 10, 0, 2, 2, 6, 8, 10, 0, 2, 3, 10, 0, 2, 4, 54, 4,
            10, 0, 2, 2, 51, 4,
        ]);
        out.extend_from_slice(&seconds.to_be_bytes());
        out.push(255);
        out
    }

    #[test]
    fn an_address_is_asked_for_taken_renewed_and_kept_when_nobody_answers() {
        let start = Instant::now();
        let mut client = Client::new(MAC, 7, "n1");
        assert!(matches!(client.tick(start)[..], [Action::Send(_)]));
        assert!(client.tick(start + Duration::from_millis(10)).is_empty(), "no storm");
        assert!(client.receive(start, &reply(OFFER, 8, 100)).is_empty(), "another client's offer");
        let [Action::Send(request)] = &client.receive(start, &reply(OFFER, 7, 100))[..] else {
            panic!("a request follows an offer")
        };
        assert!(request.windows(6).any(|part| part == [50, 4, 10, 0, 2, 15]));
        let [Action::Configure(lease)] = &client.receive(start, &reply(ACK, 7, 100))[..] else {
            panic!("configured")
        };
        assert_eq!(
            (lease.address, lease.mask, lease.gateway, lease.dns.len()),
            ([10, 0, 2, 15], [255, 255, 0, 0], Some([10, 0, 2, 2]), 2)
        );
        assert!(client.tick(start + Duration::from_secs(49)).is_empty());
        let [Action::Send(renewal)] = &client.tick(start + Duration::from_secs(50))[..] else {
            panic!("renewed at half time")
        };
        assert_eq!(renewal[12..16], [10, 0, 2, 15]);
        // Nobody answers for a day: the address stays, and asking goes on at a bounded rate.
        let mut asked = 0;
        for second in 51..86_400 {
            for action in client.tick(start + Duration::from_secs(second)) {
                assert!(matches!(action, Action::Send(_)), "{action:?}");
                asked += 1;
            }
        }
        assert!((1000..3000).contains(&asked), "asked {asked} times");
        let late = start + Duration::from_secs(86_400);
        assert!(matches!(client.receive(late, &reply(ACK, 7, 100))[..], [Action::Configure(_)]));
        assert!(client.tick(late + Duration::from_secs(49)).is_empty());
    }

    fn bound(start: Instant) -> Client {
        let mut client = Client::new(MAC, 7, "n1");
        client.tick(start);
        client.receive(start, &reply(OFFER, 7, 100));
        assert!(matches!(client.receive(start, &reply(ACK, 7, 100))[..], [Action::Configure(_)]));
        client
    }

    #[test]
    fn a_server_that_says_no_is_obeyed_but_only_when_it_was_asked() {
        let start = Instant::now();
        let mut client = bound(start);
        assert!(client.receive(start, &reply(NAK, 7, 100)).is_empty(), "a stray refusal");
        assert!(client.receive(start, &reply(ACK, 7, 100)).is_empty(), "a stray answer");
        let later = start + Duration::from_secs(50);
        client.tick(later);
        assert_eq!(client.receive(later, &reply(NAK, 7, 100)), [Action::Deconfigure]);
        assert!(client.receive(later, &reply(ACK, 7, 100)).is_empty(), "the old question counts no more");
        let [Action::Send(packet)] = &client.tick(later)[..] else { panic!("asks again") };
        assert_eq!(packet[CLIENT_HEADER + 4..CLIENT_HEADER + 7], [53, 1, DISCOVER]);
    }

    #[test]
    fn a_cable_plugged_in_again_asks_at_once_and_keeps_the_address() {
        let start = Instant::now();
        let mut client = bound(start);
        assert!(client.tick(start).is_empty());
        client.replugged();
        let [Action::Send(packet)] = &client.tick(start)[..] else { panic!("asks") };
        assert_eq!(packet[12..16], [10, 0, 2, 15]);
    }

    #[test]
    fn an_offer_that_nobody_confirms_is_given_up() {
        let mut now = Instant::now();
        let mut client = Client::new(MAC, 7, "n1");
        client.tick(now);
        client.receive(now, &reply(OFFER, 7, 100));
        for _ in 0..60 {
            now += Duration::from_secs(1);
            client.tick(now);
        }
        assert_eq!(client.state, State::Discovering);
        assert_ne!(client.xid, 7);
    }

    #[test]
    fn masks_with_holes_are_mistakes() {
        let mut packet = reply(ACK, 7, 100);
        let at = packet.windows(3).position(|part| part == [1, 4, 255]).expect("the option");
        packet[at + 2..at + 6].copy_from_slice(&[255, 0, 255, 0]);
        assert_eq!(parse(&packet, 7, MAC).map(|(_, lease)| lease.mask), Some([255, 255, 255, 0]));
    }

    #[test]
    fn a_refusal_starts_over() {
        let now = Instant::now();
        let mut client = Client::new(MAC, 7, "n1");
        client.tick(now);
        client.receive(now, &reply(OFFER, 7, 100));
        assert!(client.receive(now, &reply(NAK, 7, 100)).is_empty());
        let [Action::Send(packet)] = &client.tick(now)[..] else { panic!("asks again") };
        assert_eq!(packet[CLIENT_HEADER + 4..CLIENT_HEADER + 7], [53, 1, DISCOVER]);
    }

    #[test]
    fn damaged_packets_are_ignored() {
        let good = reply(OFFER, 0, 100);
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            bytes[28..34].fill(0);
            for _ in 0..3 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let at = usize::try_from(seed % bytes.len() as u64).expect("small");
                bytes[at] = (seed >> 32) as u8;
                if seed.is_multiple_of(5) {
                    bytes.truncate(at);
                    break;
                }
            }
            fuzz_dhcp(&bytes);
        }
    }
}
