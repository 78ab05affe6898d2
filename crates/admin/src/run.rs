//! Carries out an operator's command against a cluster.

use crate::certificates;
use crate::command::{
    BucketCommand, ClockCommand, ClusterCommand, Command, DiskCommand, KeyCommand, LayoutArgs, LayoutCommand,
    NodeCommand, RaftCommand, RoleChoice, StatusArgs, TokenCommand,
};
use crate::exit::{Exit, Trouble};
use crate::look::{Look, admitting};
use crate::report::{Report, bytes_text, table, time_text};
use crate::secret::{JoinToken, draw_access_key, wrap};
use crate::view;
use bytes::Bytes;
use plinth_client::Client;
use plinth_protocol::map::{ClusterMap, NodeRecord};
use plinth_protocol::meta::{
    AccessKeyRow, AdminReply, AdminRequest, BucketsQuery, Command as Change, DiskFolder, JoinTokenRow,
    LIST_ENTRIES_MAX, LayoutOrder, Outcome, Query, Refusal, RefusalKind, Reply,
};
use plinth_protocol::wire::Wire;
use plinth_protocol::{GROUP_SYSTEM, HybridTime, Method, Role};
use plinth_transport::{Call, Link, Peer};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a command may take before it gives up with exit code 3.
pub const COMMAND_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a change of voters may take: a learner must catch up first.
pub const VOTER_CHANGE_TIME_MAX: Duration = Duration::from_secs(600);
/// Pause before a change is offered to the next leader.
const LEADER_PAUSE: Duration = Duration::from_millis(200);

/// An operator: a client under an operator's certificate, and what only operators hold.
pub struct Operator {
    /// The cluster's client.
    pub client: Client,
    /// The same client's link, for calls to one node.
    pub link: Arc<dyn Link>,
    /// The metadata nodes of the operator's profile.
    pub bootstrap: Vec<Peer>,
    /// Whether the cluster is a demo: its nodes are stopped and started by command.
    pub demo: bool,
    /// The key that wraps new secrets; without it no key can be created.
    pub wrapping_key: Option<Vec<u8>>,
    /// SHA-256 of the cluster's CA certificate.
    pub ca_fingerprint: [u8; 32],
    /// Serial number of the operator's own certificate.
    pub serial: u128,
    /// The wall clock in milliseconds since 1970.
    pub now_ms: u64,
}

impl Operator {
    /// Returns the cluster's time in milliseconds since 1970: what expires there goes by it, not by a clock here.
    fn cluster_ms(&self) -> u64 {
        self.client.group_time(GROUP_SYSTEM).map_or(self.now_ms, HybridTime::millis)
    }
}

/// Carries out a command.
pub async fn run(operator: &Operator, command: &Command) -> Result<Report, Trouble> {
    match command {
        Command::Status(args) => status(operator, args).await,
        Command::Node(NodeCommand::List) => node_list(operator).await,
        Command::Node(NodeCommand::Stop { name }) => demo_node(operator, AdminRequest::StopNode(name.clone())).await,
        Command::Node(NodeCommand::Start { name }) => demo_node(operator, AdminRequest::StartNode(name.clone())).await,
        Command::Node(NodeCommand::Deny { name }) => certificates::node_deny(operator, name, true).await,
        Command::Node(NodeCommand::Undeny { name }) => certificates::node_deny(operator, name, false).await,
        Command::Disk(DiskCommand::List) => disk_list(operator).await,
        Command::Disk(DiskCommand::Add { node, path, create }) => disk_add(operator, node, path, *create).await,
        Command::Bucket(BucketCommand::List) => bucket_list(operator).await,
        Command::Key(KeyCommand::Create { account, description }) => {
            key_create(operator, account, description.clone()).await
        }
        Command::Key(KeyCommand::List) => key_list(operator).await,
        Command::Key(KeyCommand::Revoke { id }) => key_revoke(operator, id).await,
        Command::Cluster(ClusterCommand::Token(TokenCommand::Create { roles, minutes })) => {
            token_create(operator, roles, *minutes).await
        }
        Command::Cluster(ClusterCommand::Token(TokenCommand::List)) => certificates::token_list(operator).await,
        Command::Cluster(ClusterCommand::Token(TokenCommand::Revoke { id })) => {
            certificates::token_revoke(operator, id).await
        }
        Command::Cert(command) => certificates::run(operator, command).await,
        Command::Raft(RaftCommand::Status) => raft_status(operator).await,
        Command::Raft(RaftCommand::Add { name }) => voter(operator, name, AdminRequest::AddVoter).await,
        Command::Raft(RaftCommand::Remove { name }) => voter(operator, name, AdminRequest::RemoveVoter).await,
        Command::Layout(LayoutCommand::Show) => layout_show(operator).await,
        Command::Layout(LayoutCommand::Apply(args)) => layout_apply(operator, args).await,
        Command::Clock(ClockCommand::Confirm) => clock_confirm(operator).await,
    }
}

pub(crate) fn deadline() -> Instant {
    Instant::now() + COMMAND_TIME_MAX
}

impl Operator {
    /// Returns the newest map; fails within seconds where no majority confirms it.
    pub(crate) async fn map(&self) -> Result<ClusterMap, Trouble> {
        Ok(self.look_confirmed().await?.map)
    }

    /// Sends a request to one node.
    pub(crate) async fn ask(
        &self,
        node: &NodeRecord,
        request: &AdminRequest,
        time: Duration,
    ) -> Result<AdminReply, Trouble> {
        let peer = Peer { node: node.node, incarnation: Some(node.incarnation), address: node.address.clone() };
        let call =
            Call { method: Method::Admin, header: request.to_bytes(), payload: Vec::<Bytes>::new(), deadline: time };
        let reply = self.link.call(&peer, call).await?;
        AdminReply::decode(&reply.header)
            .map_err(|error| Trouble::new(Exit::Unsupported, "E1010", format!("{}: {error}", node.name)))
    }

    /// Commits a change and turns a refusal into a trouble.
    pub(crate) async fn change(&self, command: Change) -> Result<Outcome, Trouble> {
        match self.client.mutate(GROUP_SYSTEM, command, None, deadline()).await? {
            Outcome::Refused(refusal) => Err(refused(&refusal)),
            outcome => Ok(outcome),
        }
    }
}

pub(crate) fn unexpected(reply: &Reply) -> Trouble {
    Trouble::new(
        Exit::Unsupported,
        "E1010",
        format!("the cluster gave an answer that this command does not know: {reply:?}"),
    )
}

fn refused(refusal: &Refusal) -> Trouble {
    let (exit, code) = match refusal.kind {
        RefusalKind::NoSuchNode
        | RefusalKind::NoSuchDisk
        | RefusalKind::NoSuchAccessKey
        | RefusalKind::NoSuchCertificate
        | RefusalKind::InvalidToken => (Exit::NotFound, "E1004"),
        RefusalKind::AlreadyExists | RefusalKind::StaleEpoch => (Exit::Conflict, "E1005"),
        _ => (Exit::Failed, "E1011"),
    };
    Trouble::new(exit, code, refusal.text.clone())
}

pub(crate) fn find_node<'a>(map: &'a ClusterMap, name: &str) -> Result<&'a NodeRecord, Trouble> {
    map.nodes.iter().find(|node| node.name == name || node.node.to_string() == name).ok_or_else(|| {
        let names: Vec<&str> = map.nodes.iter().map(|node| node.name.as_str()).collect();
        Trouble::new(Exit::NotFound, "E1004", format!("there is no node {name}; nodes are {}", names.join(", ")))
    })
}

async fn status(operator: &Operator, args: &StatusArgs) -> Result<Report, Trouble> {
    let look = operator.look().await?;
    let shards = operator.shard_stats(&look).await;
    let status = view::status(&look.collected(look.confirmed.then_some(&shards[..])));
    let exit = if args.exit_status && status.health != "OK" { Exit::Problem } else { Exit::Done };
    let value = serde_json::to_value(&status).expect("a status has a JSON form");
    Ok(Report { kind: "Status", value, text: status.text(), exit })
}

/// Marks an answer that no majority has confirmed.
fn mark(look: &Look, mut value: serde_json::Value, text: String) -> (serde_json::Value, String) {
    value["authoritative"] = look.confirmed.into();
    if look.confirmed {
        return (value, text);
    }
    let epoch = look.map.epoch.0;
    (value, format!("NOT CONFIRMED by a majority: the map as of epoch {epoch}; see plinth status\n{text}"))
}

async fn node_list(operator: &Operator) -> Result<Report, Trouble> {
    let look = operator.look().await?;
    let shards = operator.shard_stats(&look).await;
    let nodes = view::nodes(&look.collected(look.confirmed.then_some(&shards[..])));
    let rows: Vec<Vec<String>> = nodes.iter().map(view::NodeView::cells).collect();
    let text = table(&["NODE", "ROLE", "DOMAIN", "STATE", "DISKS", "ADDRESS", "SAFE TO STOP"], &rows);
    let (value, text) = mark(&look, json!({ "items": nodes }), text);
    Ok(Report::done("NodeList", value, text))
}

async fn demo_node(operator: &Operator, request: AdminRequest) -> Result<Report, Trouble> {
    // Without a majority too: what a stopped node lacks is to be started.
    let look = operator.look().await?;
    let map = &look.map;
    let name = match &request {
        AdminRequest::StopNode(name) | AdminRequest::StartNode(name) => name.clone(),
        other => unreachable!("only stop and start come here, not {other:?}"),
    };
    find_node(map, &name)?;
    // Any metadata node of the process can do it that answers; one that is stopped itself can't.
    let mut last = None;
    let answers = |node: &&NodeRecord| look.answers.get(&node.node).is_some_and(Result::is_ok);
    let metas = map.nodes.iter().filter(|node| node.roles.contains(&Role::Meta)).filter(answers);
    let mut asked: Vec<&NodeRecord> = metas.collect();
    // The named one last: its answer would wait for its own end.
    asked.sort_by_key(|node| node.name == name);
    for node in asked {
        match operator.ask(node, &request, COMMAND_TIME_MAX).await {
            Ok(AdminReply::Done(text)) => {
                return Ok(Report::done("NodeChange", json!({"node": name, "message": text}), text));
            }
            Ok(_) => return Err(unexpected_answer()),
            Err(trouble) if trouble.exit == Exit::Unreachable => last = Some(trouble),
            Err(trouble) => return Err(trouble),
        }
    }
    Err(last.unwrap_or_else(|| Trouble::new(Exit::Unreachable, "E1001", "the cluster has no metadata node")))
}

async fn disk_list(operator: &Operator) -> Result<Report, Trouble> {
    let look = operator.look().await?;
    let disks = view::disks(&look.collected(None));
    let rows: Vec<Vec<String>> = disks.iter().map(view::DiskView::cells).collect();
    let text = table(&["DISK", "NODE", "STATE", "SIZE", "USED", "FILL", "DAMAGED", "GROUPS", "ID"], &rows);
    let (value, text) = mark(&look, json!({ "items": disks }), text);
    Ok(Report::done("DiskList", value, text))
}

async fn disk_add(operator: &Operator, name: &str, path: &str, create: bool) -> Result<Report, Trouble> {
    let map = operator.map().await?;
    let node = find_node(&map, name)?;
    if node.address.ends_with(":0") {
        return Err(Trouble::new(
            Exit::Unsupported,
            "E1013",
            "a demo's disks are fixed; plinth init makes a cluster that grows",
        ));
    }
    let folder = DiskFolder { path: path.to_string(), create };
    match operator.ask(node, &AdminRequest::AddDiskFolder(folder), COMMAND_TIME_MAX).await? {
        AdminReply::Done(text) => {
            Ok(Report::done("DiskChange", json!({"node": name, "path": path, "message": text}), text))
        }
        _ => Err(unexpected_answer()),
    }
}

async fn bucket_list(operator: &Operator) -> Result<Report, Trouble> {
    let map = operator.map().await?;
    let mut usage = std::collections::BTreeMap::new();
    for shard in &map.shards {
        if let Reply::ShardStat(stat) = operator.client.query(shard.group, Query::ShardStat, deadline()).await? {
            for (bucket, part) in stat.buckets {
                let whole = usage.entry(bucket).or_insert((0u64, 0u64));
                *whole = (whole.0.saturating_add(part.objects), whole.1.saturating_add(part.bytes));
            }
        }
    }
    let (mut items, mut rows, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let query =
            BucketsQuery { prefix: String::new(), after: after.clone(), limit: LIST_ENTRIES_MAX, account: None };
        let page = match operator.client.query(GROUP_SYSTEM, Query::Buckets(query), deadline()).await? {
            Reply::Buckets(page) => page,
            other => return Err(unexpected(&other)),
        };
        for bucket in &page.buckets {
            let (objects, bytes) = usage.get(&bucket.bucket).copied().unwrap_or_default();
            let created = time_text(bucket.created.millis());
            rows.push(vec![
                bucket.name.clone(),
                bucket.owner.clone(),
                objects.to_string(),
                bytes_text(bytes),
                created.clone(),
            ]);
            items.push(json!({"name": bucket.name, "id": bucket.bucket.to_string(), "owner": bucket.owner,
                "objects": objects, "bytes": bytes, "created": created}));
        }
        after = page.buckets.last().map(|bucket| bucket.name.clone());
        if !page.more || after.is_none() {
            break;
        }
    }
    Ok(Report::done(
        "BucketList",
        json!({ "items": items }),
        table(&["BUCKET", "OWNER", "OBJECTS", "BYTES", "CREATED"], &rows),
    ))
}

async fn key_create(operator: &Operator, account: &str, description: Option<String>) -> Result<Report, Trouble> {
    let wrapping_key = operator.wrapping_key.as_ref().ok_or_else(|| {
        Trouble::new(
            Exit::Denied,
            "E1012",
            "this profile holds no wrapping key; run the command where `plinth init` wrote it",
        )
    })?;
    operator.look_confirmed().await?;
    let fresh = draw_access_key();
    let wrapped =
        wrap(wrapping_key, &fresh.secret).map_err(|error| Trouble::new(Exit::Failed, "E1012", error.to_string()))?;
    let row = AccessKeyRow {
        id: fresh.id.clone(),
        wrapped_secret: wrapped.into(),
        account: account.to_string(),
        created: HybridTime::from_millis(operator.cluster_ms()),
        description,
    };
    operator.change(Change::CreateAccessKey(row)).await?;
    let text = format!("Access key  {}\nSecret key  {}   (shown once)\n", fresh.id, fresh.secret);
    let value = json!({"access_key": fresh.id, "secret_key": fresh.secret, "account": account});
    Ok(Report::done("AccessKey", value, text))
}

async fn key_list(operator: &Operator) -> Result<Report, Trouble> {
    operator.look_confirmed().await?;
    let keys = match operator.client.query(GROUP_SYSTEM, Query::AccessKeys, deadline()).await? {
        Reply::AccessKeys(list) => list.keys,
        other => return Err(unexpected(&other)),
    };
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|key| {
            let description = key.description.clone().unwrap_or_default();
            vec![key.id.clone(), key.account.clone(), time_text(key.created.millis()), description]
        })
        .collect();
    let items: Vec<_> = keys
        .iter()
        .map(|key| json!({"access_key": key.id, "account": key.account, "created": time_text(key.created.millis()), "description": key.description}))
        .collect();
    Ok(Report::done(
        "AccessKeyList",
        json!({ "items": items }),
        table(&["ACCESS KEY", "ACCOUNT", "CREATED", "FOR"], &rows),
    ))
}

async fn key_revoke(operator: &Operator, id: &str) -> Result<Report, Trouble> {
    operator.look_confirmed().await?;
    operator.change(Change::RevokeAccessKey(id.to_string())).await?;
    let text = format!("{id} is revoked; gateways refuse it within seconds");
    Ok(Report::done("AccessKeyChange", json!({"access_key": id, "revoked": true}), text))
}

async fn token_create(operator: &Operator, roles: &[RoleChoice], minutes: u64) -> Result<Report, Trouble> {
    let look = operator.look_confirmed().await?;
    let token = JoinToken::new(operator.ca_fingerprint);
    let expires = operator.cluster_ms().saturating_add(minutes.saturating_mul(60_000));
    let row = JoinTokenRow {
        hash: token.hash(),
        expires: HybridTime::from_millis(expires),
        roles: roles.iter().map(|&role| Role::from(role)).collect(),
        used: None,
    };
    operator.change(Change::CreateJoinToken(row)).await?;
    let address = admitting(&look).map(|node| node.address.clone()).unwrap_or_default();
    let join = join_line(roles, &address);
    let text = format!(
        "Token (admits one node, expires {}):\n  {}\nOn the new node, with the token in FILE:\n  {join}\n",
        time_text(expires),
        token.text()
    );
    let id = certificates::token_id(&token.hash());
    let value = json!({"token": token.text(), "id": id, "expires": time_text(expires), "meta": address, "join": join});
    Ok(Report::done("JoinToken", value, text))
}

/// Returns the command that uses a token, with every flag that these roles need.
fn join_line(roles: &[RoleChoice], meta: &str) -> String {
    let words: Vec<String> = roles.iter().map(|&role| Role::from(role).to_string()).collect();
    let s3 = if roles.contains(&RoleChoice::Gateway) { " --s3 HOST:PORT" } else { "" };
    let disk = if roles.contains(&RoleChoice::Storage) { " [--disk MOUNT_POINT]..." } else { "" };
    format!(
        "plinth join --token-file FILE --meta {meta} --roles {} --name NAME --data DIR --listen HOST:PORT \
         --health HOST:PORT{s3}{disk}",
        words.join(",")
    )
}

async fn raft_status(operator: &Operator) -> Result<Report, Trouble> {
    let look = operator.look().await?;
    let map = &look.map;
    let (mut rows, mut items) = (Vec::new(), Vec::new());
    for (node, report) in look.voters_reports() {
        for group in report.raft.iter().flat_map(|status| &status.groups) {
            let leader =
                group.leader.and_then(|leader| map.node(leader)).map_or("-".into(), |leader| leader.name.clone());
            let name = |id: &plinth_protocol::NodeId| map.node(*id).map_or(id.to_string(), |node| node.name.clone());
            let voters: Vec<String> = group.voters.iter().map(name).collect();
            let learners: Vec<String> = group.learners.iter().map(name).collect();
            let cells = [group.term, group.last_log, group.applied].map(|number| number.to_string());
            let mut row = vec![node.name.clone(), group.group.to_string(), leader.clone()];
            row.extend(cells);
            row.extend([voters.join(","), learners.join(",")]);
            rows.push(row);
            items.push(json!({"node": node.name, "group": group.group.0, "leader": leader, "term": group.term,
                "last_log": group.last_log, "applied": group.applied, "voters": voters, "learners": learners}));
        }
    }
    let text = table(&["NODE", "GROUP", "LEADER", "TERM", "LAST", "APPLIED", "VOTERS", "LEARNERS"], &rows);
    let (value, text) = mark(&look, json!({ "items": items }), text);
    Ok(Report::done("RaftStatus", value, text))
}

/// Sends a change to the leader of the system group, and to its successor where leadership moves: a leader that is
/// itself to be removed gives leadership away first.
async fn ask_leader(operator: &Operator, request: AdminRequest) -> Result<AdminReply, Trouble> {
    let deadline = deadline();
    loop {
        match ask_present_leader(operator, request.clone()).await {
            Err(trouble) if trouble.exit == Exit::Unreachable && Instant::now() + LEADER_PAUSE < deadline => {
                tokio::time::sleep(LEADER_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

async fn ask_present_leader(operator: &Operator, request: AdminRequest) -> Result<AdminReply, Trouble> {
    let look = operator.look_confirmed().await?;
    let map = &look.map;
    let heard = look.voters_reports().filter(|(_, report)| report.refused_by.is_empty());
    let leader = heard
        .filter_map(|(_, report)| report.raft.as_ref())
        .flat_map(|status| &status.groups)
        .filter(|group| group.group == GROUP_SYSTEM && group.leader.is_some())
        .max_by_key(|group| group.term)
        .and_then(|group| group.leader)
        .and_then(|leader| map.node(leader))
        .ok_or_else(|| {
            Trouble::new(Exit::Unreachable, "E1001", "the system group has no leader; see plinth raft status")
        })?;
    operator.ask(leader, &request, VOTER_CHANGE_TIME_MAX).await
}

async fn voter(
    operator: &Operator,
    name: &str,
    request: fn(plinth_protocol::NodeId) -> AdminRequest,
) -> Result<Report, Trouble> {
    let map = operator.map().await?;
    let node = find_node(&map, name)?.node;
    let AdminReply::Done(text) = ask_leader(operator, request(node)).await? else {
        return Err(unexpected_answer());
    };
    let map = operator.map().await?;
    let name_of = |id: &plinth_protocol::NodeId| map.node(*id).map_or(id.to_string(), |node| node.name.clone());
    let voters: Vec<String> = map.voters.iter().map(name_of).collect();
    let value = json!({"node": name, "id": node.0, "votes": map.voters.contains(&node), "voters": voters,
        "groups": 1 + map.shards.len(), "message": text});
    Ok(Report::done("VoterChange", value, text))
}

async fn clock_confirm(operator: &Operator) -> Result<Report, Trouble> {
    let map = operator.map().await?;
    for group in std::iter::once(GROUP_SYSTEM).chain(map.shards.iter().map(|shard| shard.group)) {
        if let Outcome::Refused(refusal) = operator.client.mutate(group, Change::ConfirmTime, None, deadline()).await? {
            return Err(refused(&refusal));
        }
    }
    let (now, groups) = (time_text(operator.cluster_ms()), 1 + map.shards.len());
    let text = format!("The cluster's time is {now}; what expires goes by it again in {groups} groups");
    Ok(Report::done("ClockChange", json!({"time": now, "groups": groups}), text))
}

async fn layout_show(operator: &Operator) -> Result<Report, Trouble> {
    let look = operator.look().await?;
    let layout = view::layout(&look.map);
    let rows: Vec<Vec<String>> = layout
        .disks
        .iter()
        .map(|share| vec![share.disk.clone(), share.open_groups.to_string(), share.closed_groups.to_string()])
        .collect();
    let text = format!(
        "code {} for new stripes, {} open and {} closed placement groups, map epoch {}\n{}",
        layout.code,
        layout.open,
        layout.closed,
        layout.epoch,
        table(&["DISK", "OPEN GROUPS", "CLOSED GROUPS"], &rows)
    );
    let value = serde_json::to_value(&layout).expect("a layout has a JSON form");
    let (value, text) = mark(&look, value, text);
    Ok(Report::done("Layout", value, text))
}

async fn layout_apply(operator: &Operator, args: &LayoutArgs) -> Result<Report, Trouble> {
    let order = LayoutOrder {
        code: args.code,
        skip_down: args.skip_down,
        less_redundancy: args.less_redundancy,
        dry_run: args.dry_run,
    };
    match ask_leader(operator, AdminRequest::ApplyLayout(order)).await? {
        AdminReply::Layout(done) => Ok(view::layout_change(&done)),
        _ => Err(unexpected_answer()),
    }
}

fn unexpected_answer() -> Trouble {
    Trouble::new(Exit::Unsupported, "E1010", "the node gave an answer that this command does not know")
}
