//! The demo's self-test: each line that it prints has been seen to hold.

use crate::caller::Caller;
use crate::demo::{BUCKET, Demo};
use crate::init::{Laid, Plan};
use bytes::Bytes;
use http::{Method, StatusCode};
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::secret::sha256;
use plinth_client::Client;
use plinth_protocol::map::State;
use plinth_protocol::meta::{AdminReply, AdminRequest, DueQuery, Query, Reply};
use plinth_protocol::{GroupId, HybridTime, NodeId, Role};
use std::time::Duration;
use tokio::time::Instant;

/// How long one step may take.
const STEP_TIME_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks at a state that is to come.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What creating a bucket answers in a demo that was kept.
const OWNED: &[u8] = b"BucketAlreadyOwnedByYou";
/// Bytes of the object that is put and read back.
const OBJECT_BYTES: usize = 8 << 20;

/// A step that held.
#[derive(Debug, Clone)]
pub struct Step {
    /// What was seen.
    pub text: String,
    /// How long it took.
    pub milliseconds: u128,
}

/// A self-test over a running demo.
pub struct SelfTest<'a> {
    demo: &'a Demo,
    plan: &'a Plan,
    caller: Caller,
    human: bool,
    started: Instant,
}

impl<'a> SelfTest<'a> {
    /// Makes a test.
    pub fn new(demo: &'a Demo, plan: &'a Plan, laid: &Laid, human: bool, started: Instant) -> Self {
        let endpoint = plan.nodes.iter().find_map(|node| node.s3).expect("a demo has a gateway");
        let caller = Caller { endpoint, access_key: laid.access_key.clone(), secret_key: laid.secret_key.0.clone() };
        SelfTest { demo, plan, caller, human, started }
    }

    /// Runs all steps; the first that does not hold ends it.
    pub async fn run(&self) -> Result<Vec<Step>, Trouble> {
        let mut steps = Vec::new();
        let client = self.demo.gateway_client().await.ok_or_else(|| broken("the demo has no gateway"))?;
        self.step(&mut steps, self.started, self.leader(&client)).await?;
        self.step(&mut steps, Instant::now(), self.storage(&client)).await?;
        let object = random_bytes();
        self.step(&mut steps, Instant::now(), self.put_and_get(&object)).await?;
        self.step(&mut steps, Instant::now(), self.lose_a_node(&client, &object)).await?;
        self.step(&mut steps, Instant::now(), self.fill_in(&client)).await?;
        Ok(steps)
    }

    async fn step(
        &self,
        steps: &mut Vec<Step>,
        since: Instant,
        work: impl Future<Output = Result<String, Trouble>>,
    ) -> Result<(), Trouble> {
        let text = tokio::time::timeout(STEP_TIME_MAX, work).await.map_err(|_| broken("a step took too long"))??;
        let step = Step { text, milliseconds: since.elapsed().as_millis() };
        if self.human {
            println!("  ✔ {:<60} {:>6} ms", step.text, step.milliseconds);
        }
        steps.push(step);
        Ok(())
    }

    async fn leader(&self, client: &Client) -> Result<String, Trouble> {
        let map = client.map();
        let metas: Vec<NodeId> =
            map.nodes.iter().filter(|node| node.roles.contains(&Role::Meta)).map(|node| node.node).collect();
        loop {
            // A linearizable read proves that there is a leader with a quorum.
            let deadline = Instant::now() + STEP_TIME_MAX;
            client.query(plinth_protocol::GROUP_SYSTEM, Query::Map(Some(map.epoch)), deadline).await?;
            if let Some(leader) = self.demo.leader().await {
                let name = map.node(leader).map_or_else(|| leader.to_string(), |node| node.name.clone());
                return Ok(format!("{} metadata nodes, leader {name}", metas.len()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn storage(&self, client: &Client) -> Result<String, Trouble> {
        let map = client.map();
        let nodes = map.nodes.iter().filter(|node| node.roles.contains(&Role::Storage)).count();
        let (status, body) =
            self.caller.send(Method::PUT, &format!("/{BUCKET}"), Bytes::new()).await.map_err(broken)?;
        let is_kept = status == StatusCode::CONFLICT && body.windows(OWNED.len()).any(|part| part == OWNED);
        if !is_kept {
            expect(status, StatusCode::OK, "creating the bucket", &body)?;
        }
        Ok(format!("{nodes} storage nodes, {} disks, code {}", map.disks.len(), map.code))
    }

    async fn put_and_get(&self, object: &Bytes) -> Result<String, Trouble> {
        self.put("selftest/first", object).await?;
        self.get("selftest/first", object).await?;
        Ok(format!("put and get {} MiB, SHA-256 equal", OBJECT_BYTES >> 20))
    }

    async fn lose_a_node(&self, client: &Client, object: &Bytes) -> Result<String, Trouble> {
        self.demo.stop_node("s3").await?;
        self.get("selftest/first", object).await?;
        self.put("selftest/without-s3", object).await?;
        self.get("selftest/without-s3", object).await?;
        // The stopped node has said so: stripes go to groups without it, unless one was on its way.
        match owed(client).await? {
            0 => Ok("stopped s3: old object read, new object written to the others".into()),
            _ => {
                let width = self.plan.code.width();
                Ok(format!("stopped s3: old object read, new object written ({} of {width})", width - 1))
            }
        }
    }

    async fn fill_in(&self, client: &Client) -> Result<String, Trouble> {
        let before = owed(client).await?;
        self.demo.start_node("s3").await?;
        loop {
            client.refresh_map().await?;
            let is_up = client.map().nodes.iter().any(|node| node.name == "s3" && node.state == State::Up);
            let left = owed(client).await?;
            if left == 0 && is_up {
                let stripes = if before == 1 { "stripe" } else { "stripes" };
                return Ok(format!("started s3: it serves again, {before} {stripes} filled in, 0 at risk"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn put(&self, key: &str, object: &Bytes) -> Result<(), Trouble> {
        let path = format!("/{BUCKET}/{key}");
        let (status, body) = self.caller.send(Method::PUT, &path, object.clone()).await.map_err(broken)?;
        expect(status, StatusCode::OK, "put", &body)
    }

    async fn get(&self, key: &str, object: &Bytes) -> Result<(), Trouble> {
        let path = format!("/{BUCKET}/{key}");
        let (status, body) = self.caller.send(Method::GET, &path, Bytes::new()).await.map_err(broken)?;
        expect(status, StatusCode::OK, "get", &body)?;
        if sha256(&body) != sha256(object) {
            return Err(broken("the object read back is not the one that was put"));
        }
        Ok(())
    }
}

impl Demo {
    /// Returns the leader of the first shard as the metadata nodes see it.
    async fn leader(&self) -> Option<NodeId> {
        for meta in self.metas().await {
            if let Ok(AdminReply::RaftStatus(status)) = meta.handle_admin(AdminRequest::RaftStatus).await
                && let Some(leader) = status.groups.iter().find_map(|group| group.leader)
            {
                return Some(leader);
            }
        }
        None
    }
}

/// Counts the stripes that owe fragments.
async fn owed(client: &Client) -> Result<usize, Trouble> {
    let mut count = 0;
    let groups: Vec<GroupId> = client.map().shards.iter().map(|shard| shard.group).collect();
    for group in groups {
        let query = Query::FillIns(DueQuery { before: HybridTime(u64::MAX), after: None, limit: 1000, age_ms: None });
        match client.query(group, query, Instant::now() + STEP_TIME_MAX).await? {
            Reply::FillIns(page) => count += page.rows.len(),
            other => return Err(broken(format!("unexpected reply {other:?}"))),
        }
    }
    Ok(count)
}

fn random_bytes() -> Bytes {
    let mut bytes = vec![0; OBJECT_BYTES];
    for chunk in bytes.chunks_mut(64) {
        chunk.copy_from_slice(&plinth_admin::secret::draw::<64>());
    }
    Bytes::from(bytes)
}

fn expect(status: StatusCode, wanted: StatusCode, what: &str, body: &Bytes) -> Result<(), Trouble> {
    if status == wanted {
        return Ok(());
    }
    Err(broken(format!("{what}: status {status}, {}", String::from_utf8_lossy(body))))
}

fn broken(text: impl ToString) -> Trouble {
    Trouble::new(Exit::Problem, "E2016", format!("self-test: {}", text.to_string()))
}
