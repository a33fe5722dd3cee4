use rcgen::PKCS_RSA_SHA256;

use super::*;
use crate::identity::Peer;

const NOW_S: u64 = 1_790_000_000;

fn authority() -> (tempfile::TempDir, Authority) {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(directory.path(), NOW_S).unwrap();
    (directory, authority)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn csr(subject: &str, key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, subject);
    params
        .distinguished_name
        .push(DnType::OrganizationalUnitName, "operator");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn the_same_authority_is_there_after_a_restart() {
    let (directory, first) = authority();
    let again = Authority::load_or_create(directory.path(), NOW_S + 1).unwrap();
    assert_eq!(first.sha256(), again.sha256());
    let mode = fs::metadata(directory.path().join("ca.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_crash_between_key_and_certificate_is_mended() {
    let (directory, _) = authority();
    fs::remove_file(directory.path().join("ca.crt")).unwrap();
    assert!(Authority::load_or_create(directory.path(), NOW_S).is_ok());
}

#[test]
fn what_does_not_fit_together_is_refused_with_a_remedy() {
    let (directory, _) = authority();
    let (other, _) = authority();
    let key = directory.path().join("ca.key");
    let pem = fs::read(other.path().join("ca.key")).unwrap();

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = Authority::load_or_create(directory.path(), NOW_S).err().unwrap();
    assert!(
        error.what.contains("0640") && error.fix.contains("chmod 600"),
        "{error}"
    );

    write_private(&key, &pem).unwrap();
    let error = Authority::load_or_create(directory.path(), NOW_S).err().unwrap();
    assert!(error.what.contains("do not belong together"), "{error}");

    write_private(&key, b"-----BEGIN").unwrap();
    let error = Authority::load_or_create(directory.path(), NOW_S).err().unwrap();
    assert!(error.what.contains("ca.key"), "{error}");

    fs::remove_file(&key).unwrap();
    let error = Authority::load_or_create(directory.path(), NOW_S).err().unwrap();
    assert!(error.fix.contains("backup"), "{error}");
}

#[test]
fn of_a_signing_request_only_the_key_is_used() {
    let (_directory, authority) = authority();
    let key = KeyPair::generate().unwrap();
    let issued = authority
        .issue_card(&name("local"), &csr("broker", &key), NOW_S)
        .unwrap();
    let peer = Peer::of(&issued.certificate).unwrap();
    assert_eq!((peer.kind, peer.name.as_str()), (Kind::Card, "local"));
    assert_eq!(peer.not_after_s, NOW_S + CARD_CERT_TTL_S);
    let (_, parsed) = x509_parser::parse_x509_certificate(&issued.certificate).unwrap();
    assert!(parsed.subject_alternative_name().unwrap().is_none());
    assert!(!parsed.is_ca());
    assert_eq!(
        parsed.public_key().subject_public_key.data.as_ref(),
        key.public_key_raw()
    );
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
}

#[test]
fn a_request_that_its_key_did_not_sign_is_refused() {
    let (_directory, authority) = authority();
    let mut request = csr("local", &KeyPair::generate().unwrap());
    assert!(authority.issue_card(&name("local"), &request, NOW_S).is_ok());
    let last = request.len() - 1;
    request[last] ^= 1;
    let refused = authority.issue_card(&name("local"), &request, NOW_S);
    assert!(matches!(refused, Err(IssueError::Request(_))), "{refused:?}");
    for cut in [0, 1, 40, request.len() - 1] {
        assert!(authority.issue_card(&name("local"), &request[..cut], NOW_S).is_err());
    }
}

#[test]
fn a_request_for_another_kind_of_key_is_refused() {
    let (_directory, authority) = authority();
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let refused = authority.issue_card(&name("local"), &csr("local", &key), NOW_S);
    assert!(matches!(refused, Err(IssueError::Key)), "{refused:?}");
}

#[test]
fn an_operator_gets_a_certificate_of_its_own_kind() {
    let (_directory, authority) = authority();
    let (issued, key) = authority.issue_operator(&name("ann"), NOW_S).unwrap();
    let peer = Peer::of(&issued.certificate).unwrap();
    assert_eq!((peer.kind, peer.name.as_str()), (Kind::Operator, "ann"));
    assert!(key.contains("PRIVATE KEY"));
}
