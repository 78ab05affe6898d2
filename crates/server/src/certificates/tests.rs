//! Certificates that have ended, made anew from a metadata node's folder.

use super::*;
use plinth_protocol::{ClusterId, NodeId, Role};
use plinth_transport::Identity;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Writes a node's folder with a certificate that ended a day ago.
fn ended(folder: &Path, authority: &Authority, node: u64, role: &str, incarnation: u64) -> PathBuf {
    let roles = if role == "meta" { vec![Role::Meta] } else { vec![Role::Storage] };
    let identity = Identity { cluster: ClusterId(7), node: NodeId(node), roles, incarnation: Incarnation(incarnation) };
    let certificate = authority.issue(&identity, DAY, wall_clock() - 2 * DAY).unwrap();
    files::make_folder(folder).unwrap();
    files::write_public(&folder.join("node.crt"), certificate.chain_pem().as_bytes()).unwrap();
    files::write_secret(&folder.join("node.key"), certificate.key_pem().as_bytes()).unwrap();
    files::write_secret(&folder.join("ca.key"), authority.key_pem().as_bytes()).unwrap();
    files::write_secret(&folder.join("wrapping.key"), &[7; 32]).unwrap();
    let mut table: toml::Table = toml::from_str(&crate::config::default_text()).unwrap();
    let section = table["node"].as_table_mut().unwrap();
    section.insert("roles".into(), vec![role].into());
    section.insert("incarnation".into(), (incarnation as i64).into());
    let text = toml::to_string(&table).unwrap();
    let file = folder.join("plinth.toml");
    files::write_public(&file, text.as_bytes()).unwrap();
    file
}

fn valid_in(folder: &Path) -> NodeCertificate {
    let certificate =
        NodeCertificate::load(&read(folder, "node.crt"), &read(folder, "node.key")).expect("a chain and its key");
    assert!(certificate.valid_until() > wall_clock(), "{}", folder.display());
    certificate
}

fn read(folder: &Path, name: &str) -> String {
    files::read_text(&folder.join(name)).unwrap()
}

#[test]
fn ended_certificates_of_named_folders_are_made_anew_for_the_same_keys() {
    let root = tempfile::tempdir().unwrap();
    let folder = |name: &str| root.path().join(name);
    let authority = Authority::create(ClusterId(7), wall_clock() - 5 * DAY).unwrap();
    let config = ended(&folder("m1"), &authority, 1, "meta", 1);
    ended(&folder("s1"), &authority, 2, "storage", 3);
    ended(&folder("s2"), &authority, 4, "storage", 1);
    let before = (read(&folder("s1"), "node.key"), read(&folder("s2"), "node.crt"));
    let check = Config::load(&config, &[]).unwrap();
    let secrets = Secrets::load(&check).unwrap();
    let said = identity::check_validity(&secrets.certificate, wall_clock()).unwrap_err();
    assert!(said.contains("ended on") && said.contains("plinth cert reissue"), "{said}");
    reissue(&config, &[folder("m1"), folder("s1").join("plinth.toml")], Some(30)).unwrap();
    assert_eq!(valid_in(&folder("m1")).node(), NodeId(1));
    let second = valid_in(&folder("s1"));
    assert_eq!((second.node(), second.facts().incarnation), (NodeId(2), Some(Incarnation(3))));
    assert_eq!((read(&folder("s1"), "node.key"), read(&folder("s2"), "node.crt")), before, "keys and others stay");
    let left = second.valid_until().duration_since(wall_clock()).unwrap();
    assert!(left > 29 * DAY && left <= 30 * DAY, "{left:?}");
    assert_eq!(identity::check_validity(&second, wall_clock()), Ok(()));
}

#[test]
fn what_the_ca_did_not_sign_is_not_signed_for_it() {
    let root = tempfile::tempdir().unwrap();
    let folder = |name: &str| root.path().join(name);
    let make = || Authority::create(ClusterId(7), wall_clock() - 5 * DAY).unwrap();
    let (own, other) = (make(), make());
    let config = ended(&folder("m1"), &own, 1, "meta", 1);
    ended(&folder("x1"), &other, 2, "storage", 1);
    let error = reissue(&config, &[folder("x1")], None).unwrap_err();
    assert!(error.text.contains("authority"), "{error}");
    // The right CA's certificate behind a leaf that it never signed.
    let leaf =
        read(&folder("x1"), "node.crt").split_inclusive("-----END CERTIFICATE-----\n").next().unwrap().to_string();
    files::write_public(&folder("x1").join("node.crt"), (leaf + own.certificate_pem()).as_bytes()).unwrap();
    reissue(&config, &[folder("x1")], None).expect_err("forged");
    ended(&folder("s1"), &own, 3, "storage", 1);
    let gateway = reissue(&folder("s1").join("plinth.toml"), &[], None).unwrap_err();
    assert!(gateway.text.contains("no metadata node"), "{gateway}");
}
