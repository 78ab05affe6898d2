//! Who is trusted: certificates, the deny list, join tokens.

use crate::command::CertCommand;
use crate::exit::{Exit, Trouble};
use crate::report::{Report, table, time_text};
use crate::run::{COMMAND_TIME_MAX, Operator, deadline, find_node, unexpected};
use plinth_protocol::map::{ClusterMap, NodeRecord, State};
use plinth_protocol::meta::{
    AdminReply, AdminRequest, CertificateList, CertificateRow, CertifyOperator, CertifyRequest, Command as Change,
    DenyNode, JoinTokenRow, OPERATOR_NODE_MIN, Query, Reply,
};
use plinth_protocol::wire::Wire;
use plinth_protocol::{GROUP_SYSTEM, Method, Role};
use plinth_transport::{Call, Peer};
use serde_json::json;
use std::time::Duration;

/// How long one metadata node may take to write the operator's own certificate down.
const RECORD_TIME_MAX: Duration = Duration::from_secs(3);
/// Hexadecimal digits of a token's id: the beginning of its hash.
const TOKEN_ID_DIGITS: usize = 12;

/// Carries out a certificate command that needs no files of its own.
pub(crate) async fn run(operator: &Operator, command: &CertCommand) -> Result<Report, Trouble> {
    match command {
        CertCommand::List => list(operator).await,
        CertCommand::Revoke { serial } => revoke(operator, serial).await,
        CertCommand::Operator { .. } | CertCommand::Reissue { .. } => {
            Err(Trouble::new(Exit::Unsupported, "E1012", "this program cannot write the files of that command"))
        }
    }
}

/// Has a metadata node certify an operator under a name; returns the certificate chain, PEM.
pub async fn certify_operator(operator: &Operator, order: CertifyOperator) -> Result<String, Trouble> {
    let map = operator.map().await?;
    let request = AdminRequest::CertifyOperator(order);
    let mut last = Trouble::new(Exit::Unreachable, "E1001", "the cluster has no metadata node");
    for node in metas(&map) {
        match operator.ask(node, &request, COMMAND_TIME_MAX).await {
            Ok(AdminReply::Certificate(chain)) => return Ok(chain),
            Ok(_) => return Err(Trouble::new(Exit::Unsupported, "E1010", "unexpected answer")),
            Err(trouble) if trouble.exit == Exit::Unreachable => last = trouble,
            Err(trouble) => return Err(trouble),
        }
    }
    Err(last)
}

fn metas(map: &ClusterMap) -> impl Iterator<Item = &NodeRecord> {
    map.nodes.iter().filter(|node| node.roles.contains(&Role::Meta) && node.state != State::Retired)
}

/// Has the operator's own certificate written down, as far as a metadata node answers: the one that `plinth init`
/// made is otherwise unknown to the list.
async fn record_own(operator: &Operator, map: &ClusterMap) {
    for node in metas(map) {
        let peer = Peer { node: node.node, incarnation: Some(node.incarnation), address: node.address.clone() };
        let header = CertifyRequest { csr: None }.to_bytes();
        let call = Call { method: Method::Certify, header, payload: Vec::new(), deadline: RECORD_TIME_MAX };
        if operator.link.call(&peer, call).await.is_ok() {
            return;
        }
    }
}

async fn listed(operator: &Operator) -> Result<CertificateList, Trouble> {
    match operator.client.query(GROUP_SYSTEM, Query::Certificates, deadline()).await? {
        Reply::Certificates(list) => Ok(list),
        other => Err(unexpected(&other)),
    }
}

async fn list(operator: &Operator) -> Result<Report, Trouble> {
    let map = operator.map().await?;
    record_own(operator, &map).await;
    let mut list = listed(operator).await?;
    list.certificates.retain(|row| row.valid_until_s.saturating_mul(1000) >= operator.now_ms);
    list.certificates.sort_by_key(|row| (row.node, row.valid_until_s));
    let (mut rows, mut items) = (Vec::new(), Vec::new());
    for row in &list.certificates {
        let revoked = list.revoked.iter().any(|revoked| revoked.serial == row.serial);
        let denied = map.denied_nodes.contains(&row.node);
        let state = match (revoked, denied) {
            (true, _) => "REVOKED",
            (false, true) => "DENIED",
            (false, false) => "VALID",
        };
        let roles: Vec<String> = row.roles.iter().map(Role::to_string).collect();
        let (owner, ends) = (owner_of(&map, row), time_text(row.valid_until_s.saturating_mul(1000)));
        let serial = format!("{:032x}", row.serial);
        let left = left_text(row.valid_until_s, operator.now_ms / 1000);
        rows.push(vec![owner.clone(), roles.join(","), state.into(), ends.clone(), left, serial.clone()]);
        items.push(json!({"owner": owner, "node": row.node.0, "roles": roles, "state": state, "ends": ends,
            "serial": serial, "operator": row.operator, "own": row.serial == operator.serial}));
    }
    let text = table(&["OWNER", "ROLES", "STATE", "ENDS", "LEFT", "SERIAL"], &rows);
    Ok(Report::done("CertificateList", json!({ "items": items }), text))
}

fn owner_of(map: &ClusterMap, row: &CertificateRow) -> String {
    match (&row.operator, map.node(row.node)) {
        (Some(name), _) => format!("operator {name}"),
        (None, _) if row.node.0 >= OPERATOR_NODE_MIN => "operator (of plinth init)".into(),
        (None, Some(node)) => node.name.clone(),
        (None, None) => row.node.to_string(),
    }
}

/// Returns how much of a life is left, in its largest whole unit.
fn left_text(until_s: u64, now_s: u64) -> String {
    let left = until_s.saturating_sub(now_s);
    match left {
        0..120 => format!("{left} s"),
        120..7_200 => format!("{} min", left / 60),
        7_200..172_800 => format!("{} h", left / 3_600),
        _ => format!("{} d", left / 86_400),
    }
}

async fn revoke(operator: &Operator, serial: &str) -> Result<Report, Trouble> {
    let serial = u128::from_str_radix(serial, 16)
        .map_err(|_| Trouble::new(Exit::Usage, "E1014", "a serial number is hexadecimal; see plinth cert list"))?;
    if serial == operator.serial {
        let text = "this is the certificate that you are using: revoke it under another operator's";
        return Err(Trouble::new(Exit::Conflict, "E1005", text));
    }
    operator.change(Change::RevokeCertificate(serial)).await?;
    let text = format!("{serial:032x} is revoked; nodes refuse it within seconds");
    Ok(Report::done("CertificateChange", json!({"serial": format!("{serial:032x}"), "revoked": true}), text))
}

/// Puts a node on the deny list or takes it off.
pub(crate) async fn node_deny(operator: &Operator, name: &str, denied: bool) -> Result<Report, Trouble> {
    let map = operator.map().await?;
    let node = find_node(&map, name)?;
    if operator.demo {
        return Err(Trouble::new(Exit::Unsupported, "E1013", "a demo's nodes reach each other without certificates"));
    }
    operator.change(Change::DenyNode(DenyNode { node: node.node, denied })).await?;
    let text = match denied {
        true => format!(
            "{name} is denied: the others refuse it and close its connections within seconds\n  next: plinth node undeny {name}, once it is to be trusted again"
        ),
        false => format!("{name} may connect again"),
    };
    Ok(Report::done("NodeChange", json!({"node": name, "denied": denied, "message": text}), text))
}

/// Returns a token's id: the beginning of its hash, which tells nothing of the token.
pub(crate) fn token_id(hash: &[u8; 32]) -> String {
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..TOKEN_ID_DIGITS].to_string()
}

async fn tokens(operator: &Operator) -> Result<Vec<JoinTokenRow>, Trouble> {
    match operator.client.query(GROUP_SYSTEM, Query::JoinTokens, deadline()).await? {
        Reply::JoinTokens(list) => Ok(list.tokens),
        other => Err(unexpected(&other)),
    }
}

/// Lists join tokens.
pub(crate) async fn token_list(operator: &Operator) -> Result<Report, Trouble> {
    let map = operator.map().await?;
    let (mut rows, mut items) = (Vec::new(), Vec::new());
    for token in tokens(operator).await?.iter().filter(|token| token.expires.millis() > operator.now_ms) {
        let roles: Vec<String> = token.roles.iter().map(Role::to_string).collect();
        let name = |node| map.node(node).map_or_else(|| node.to_string(), |node| node.name.clone());
        let used = token.used.as_ref().map(|used| name(used.node));
        let (id, expires) = (token_id(&token.hash), time_text(token.expires.millis()));
        rows.push(vec![id.clone(), roles.join(","), expires.clone(), used.clone().unwrap_or_else(|| "-".into())]);
        items.push(json!({"id": id, "roles": roles, "expires": expires, "admitted": used}));
    }
    let text = table(&["TOKEN", "ROLES", "EXPIRES", "ADMITTED"], &rows);
    Ok(Report::done("JoinTokenList", json!({ "items": items }), text))
}

/// Withdraws a join token.
pub(crate) async fn token_revoke(operator: &Operator, id: &str) -> Result<Report, Trouble> {
    let tokens = tokens(operator).await?;
    let found: Vec<_> = tokens.iter().filter(|token| token_id(&token.hash) == id.to_lowercase()).collect();
    let [token] = found.as_slice() else {
        return Err(Trouble::new(
            Exit::NotFound,
            "E1004",
            format!("there is no token {id}; see plinth cluster token list"),
        ));
    };
    operator.change(Change::RevokeJoinToken(token.hash)).await?;
    let text = format!("token {id} is withdrawn: it admits nobody any more");
    Ok(Report::done("JoinTokenChange", json!({"id": id, "revoked": true}), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_whole_units() {
        let left = |seconds: u64| left_text(1_000_000 + seconds, 1_000_000);
        assert_eq!((left(0), left(119), left(300)), ("0 s".into(), "119 s".into(), "5 min".into()));
        assert_eq!((left(86_400), left(90 * 86_400)), ("24 h".into(), "90 d".into()));
        assert_eq!(left_text(5, 9), "0 s");
    }
}
