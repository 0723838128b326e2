//! Channel binding: what ties a login to the TLS connection, so that nobody in between can pass it on.
//!
//! `tls-server-end-point` (RFC 5929, section 4): the hash of the server's certificate, by the hash function of the
//! certificate's signature; SHA-256 in place of MD5 and SHA-1. Signatures without one such function (Ed25519, RSA-PSS)
//! have no binding.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// The binding for a certificate in DER form; `None` when its signature defines none, or it is not understood.
pub(crate) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature(certificate)? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// `pkcs-1` of RFC 8017: 1.2.840.113549.1.1, then the number.
const RSA: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
/// `ecdsa-with-SHA1` of RFC 3279: 1.2.840.10045.4.1.
const ECDSA_SHA1: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
/// `ecdsa-with-SHA2` of RFC 5758: 1.2.840.10045.4.3, then the number.
const ECDSA_SHA2: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];

/// `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, … }, … }` (RFC 5280).
fn signature(certificate: &[u8]) -> Option<Hash> {
    const SEQUENCE: u8 = 0x30;
    const IDENTIFIER: u8 = 0x06;
    let (fields, _) = element(certificate, SEQUENCE)?;
    let (_signed, rest) = element(fields, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    let (identifier, _) = element(algorithm, IDENTIFIER)?;
    if let Some([number]) = identifier.strip_prefix(&RSA) {
        return match number {
            // MD5 and SHA-1 are hashed by SHA-256.
            4 | 5 | 11 => Some(Hash::Sha256),
            12 => Some(Hash::Sha384),
            13 => Some(Hash::Sha512),
            14 => Some(Hash::Sha224),
            _ => None,
        };
    }
    if identifier == ECDSA_SHA1 {
        return Some(Hash::Sha256);
    }
    match identifier.strip_prefix(&ECDSA_SHA2)? {
        [1] => Some(Hash::Sha224),
        [2] => Some(Hash::Sha256),
        [3] => Some(Hash::Sha384),
        [4] => Some(Hash::Sha512),
        _ => None,
    }
}

/// The content of a DER element of this type, and what follows it.
fn element(bytes: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        // Three bytes of length are sixteen megabytes: no certificate is longer.
        long @ 0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    (*found == kind).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate's outer shape: an empty signed part, the algorithm, no signature.
    fn certificate(identifier: &[u8]) -> Vec<u8> {
        let mut algorithm = vec![0x06, identifier.len() as u8];
        algorithm.extend_from_slice(identifier);
        let mut fields = vec![0x30, 0, 0x30, algorithm.len() as u8];
        fields.extend(algorithm);
        let mut whole = vec![0x30, 0x81, fields.len() as u8];
        whole.extend(fields);
        whole
    }

    #[test]
    fn the_hash_follows_the_signature() {
        let rsa = |number: u8| [RSA.as_slice(), &[number]].concat();
        let ecdsa = |number: u8| [ECDSA_SHA2.as_slice(), &[number]].concat();
        let ed25519 = vec![0x2b, 0x65, 0x70];
        let cases = [
            (rsa(4), Some(32)),
            (rsa(5), Some(32)),
            (rsa(10), None),
            (rsa(11), Some(32)),
            (rsa(12), Some(48)),
            (rsa(13), Some(64)),
            (rsa(14), Some(28)),
            (ECDSA_SHA1.to_vec(), Some(32)),
            (ecdsa(2), Some(32)),
            (ecdsa(3), Some(48)),
            (ecdsa(4), Some(64)),
            (ed25519, None),
        ];
        for (identifier, length) in cases {
            let found = end_point(&certificate(&identifier)).map(|hash| hash.len());
            assert_eq!(found, length, "{identifier:x?}");
        }
    }

    #[test]
    fn garbage_has_no_binding() {
        let whole = certificate(&ECDSA_SHA1);
        for cut in 0..whole.len() {
            assert_eq!(end_point(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(end_point(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
