//! The CAs of the nodes: one, or two while one takes the place of the other.

use pki::{Ca, Key, PkiError, format_utc, pem_decode, pem_encode};

const CERTIFICATE: &str = "CERTIFICATE";

/// A change of the CA under way: kept beside the active CA until the change is finished.
#[derive(Clone, Debug)]
pub struct Rotation {
    pub old: Ca,
    pub new: Ca,
    /// The new CA, signed by the old one.
    pub cross: Vec<u8>,
}

impl Rotation {
    pub fn begin(old: &Ca, now_s: u64) -> Result<Rotation, PkiError> {
        let new = old.create_successor(now_s)?;
        let cross = old.cross_sign(&new, now_s)?;
        Ok(Rotation { old: old.clone(), new, cross })
    }

    /// Old, new, cross.
    pub fn to_pem(&self) -> String {
        format!("{}{}{}", self.old.to_pem(), self.new.to_pem(), pem_encode(CERTIFICATE, &self.cross))
    }

    pub fn from_pem(text: &str) -> Result<Rotation, PkiError> {
        let malformed = PkiError::Malformed {
            what: "the CA change",
            reason: "it must have two CAs with keys and a cross certificate",
        };
        let blocks = pem_decode(text)?;
        match &blocks[..] {
            [(_, old), (_, old_key), (_, new), (_, new_key), (_, cross)] => Ok(Rotation {
                old: Ca::new(old.clone(), Key::from_secret(old_key)?)?,
                new: Ca::new(new.clone(), Key::from_secret(new_key)?)?,
                cross: cross.clone(),
            }),
            _ => Err(malformed),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Material {
    /// Signs.
    pub active: Ca,
    pub rotation: Option<Rotation>,
}

impl PartialEq for Material {
    fn eq(&self, other: &Material) -> bool {
        self.trusted().map(Ca::cert_der).eq(other.trusted().map(Ca::cert_der))
    }
}

impl Material {
    /// The active one first.
    pub fn trusted(&self) -> impl Iterator<Item = &Ca> {
        let others = self.rotation.iter().flat_map(|rotation| [&rotation.new, &rotation.old]);
        std::iter::once(&self.active).chain(others.filter(|ca| ca.cert_der() != self.active.cert_der()))
    }

    /// What leads from the active CA to the one before it.
    pub fn cross_of_active(&self) -> Option<&[u8]> {
        let rotation = self.rotation.as_ref()?;
        (rotation.new.cert_der() == self.active.cert_der()).then_some(&rotation.cross)
    }

    /// The CA that a token names, else the active one.
    pub fn by_hash(&self, hash: &str) -> &Ca {
        self.trusted().find(|ca| ca.hash() == hash).unwrap_or(&self.active)
    }

    /// All trusted ones, for nodes.
    pub fn trust_pem(&self) -> String {
        self.trusted().map(Ca::cert_pem).collect()
    }

    /// One line for a person.
    pub fn describe(&self) -> String {
        let name = |ca: &Ca| {
            let until = format_utc(ca.info().validity.not_after);
            format!("{:?} (sha256 {}, until {until})", ca.info().subject.common_name, &ca.hash()[..16])
        };
        let others: Vec<String> = self.trusted().skip(1).map(name).collect();
        let trusted = if others.is_empty() {
            String::new()
        } else {
            format!("; trusted beside it: {}", others.join(", "))
        };
        format!("certificates of nodes are signed by CA {}{trusted}", name(&self.active))
    }
}

/// Fuzz entry: any bytes are a CA change or an error.
pub fn fuzz_rotation(data: &[u8]) {
    drop(Rotation::from_pem(&String::from_utf8_lossy(data)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_survives_being_stored_and_orders_what_is_trusted() {
        let now = 1_800_000_000;
        let old = Ca::create("KubeEdge", now).unwrap();
        let rotation = Rotation::begin(&old, now).unwrap();
        let kept = Rotation::from_pem(&rotation.to_pem()).unwrap();
        assert_eq!((kept.new.hash(), &kept.cross), (rotation.new.hash(), &rotation.cross));
        let announced = Material { active: old.clone(), rotation: Some(kept.clone()) };
        let switched = Material { active: kept.new.clone(), rotation: Some(kept.clone()) };
        let hashes = |material: &Material| material.trusted().map(Ca::hash).collect::<Vec<_>>();
        assert_eq!(hashes(&announced), [old.hash(), kept.new.hash()]);
        assert_eq!(hashes(&switched), [kept.new.hash(), old.hash()]);
        assert!(announced != switched && announced.cross_of_active().is_none());
        assert_eq!(switched.cross_of_active(), Some(&kept.cross[..]));
        assert_eq!(switched.by_hash(&old.hash()).hash(), old.hash());
        assert_eq!(switched.by_hash("unknown").hash(), kept.new.hash());
        // Seeded mutations of a good one.
        let good = rotation.to_pem().into_bytes();
        for n in 0..2_000_usize {
            let mut bytes = good.clone();
            let at = n.wrapping_mul(2_654_435_761) % bytes.len();
            bytes[at] = bytes[at].wrapping_add((n % 251) as u8);
            if n % 3 == 0 {
                bytes.truncate(at);
            }
            fuzz_rotation(&bytes);
        }
    }
}
