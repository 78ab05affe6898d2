//! The operator's command line, as types. Help shows examples first.

use clap::{Args, Subcommand, ValueEnum};
use plinth_protocol::stripe::Code;
use std::path::PathBuf;

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Columns for people.
    Table,
    /// JSON for scripts; errors too, on standard error.
    Json,
}

/// A role that a joining node may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleChoice {
    /// Speaks S3.
    Gateway,
    /// Votes and keeps the namespace.
    Meta,
    /// Keeps fragments.
    Storage,
}

impl From<RoleChoice> for plinth_protocol::Role {
    fn from(choice: RoleChoice) -> Self {
        match choice {
            RoleChoice::Gateway => plinth_protocol::Role::Gateway,
            RoleChoice::Meta => plinth_protocol::Role::Meta,
            RoleChoice::Storage => plinth_protocol::Role::Storage,
        }
    }
}

/// What an operator can ask of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Shows the cluster on one screen: verdict, metadata, storage, redundancy, capacity.
    ///
    /// Example: plinth status --exit-status && echo healthy
    Status(StatusArgs),
    /// Nodes: list them, deny one that is not to be trusted any more; in a demo stop and start them.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Disks: list them, add one to a running storage node.
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Buckets: list them with objects and bytes.
    #[command(subcommand)]
    Bucket(BucketCommand),
    /// Access keys: create (the secret is shown once), list, revoke.
    #[command(subcommand)]
    Key(KeyCommand),
    /// The cluster itself: tokens for nodes that join.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Certificates of nodes and operators: list, revoke, make.
    #[command(subcommand)]
    Cert(CertCommand),
    /// Raft groups and their voters.
    #[command(subcommand)]
    Raft(RaftCommand),
    /// Placement groups: show them, plan them anew over the disks that are up.
    #[command(subcommand)]
    Layout(LayoutCommand),
    /// The cluster's time.
    #[command(subcommand)]
    Clock(ClockCommand),
}

/// Options of `status`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StatusArgs {
    /// Exits 8 where the verdict is not OK.
    #[arg(long)]
    pub exit_status: bool,
}

/// Node commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum NodeCommand {
    /// Lists nodes with role, state and whether they may stop.
    List,
    /// Stops a node of a demo.
    Stop {
        /// The node's name.
        name: String,
    },
    /// Starts a stopped node of a demo.
    Start {
        /// The node's name.
        name: String,
    },
    /// Has every other node refuse a node and close its connections, within seconds.
    Deny {
        /// The node's name.
        name: String,
    },
    /// Admits a denied node again.
    Undeny {
        /// The node's name.
        name: String,
    },
}

/// Certificate commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum CertCommand {
    /// Lists certificates that have not ended: whose they are, how long they last, and which are revoked.
    List,
    /// Refuses a certificate from now on, everywhere within seconds. A node is better denied: `node deny`.
    Revoke {
        /// The serial number, as `cert list` shows it.
        serial: String,
    },
    /// Makes a certificate and a profile for an operator of that name.
    ///
    /// Example: plinth cert operator mai --dir mai && plinth --profile mai/profile.toml status
    Operator {
        /// The operator's name: letters, digits, dots, dashes, underlines, @.
        name: String,
        /// Folder for profile, certificate and key; must be empty or absent.
        #[arg(long)]
        dir: PathBuf,
        /// Days until the certificate ends: 1 to 400.
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=400))]
        days: u64,
        /// Copies the key that wraps access keys' secrets too: the operator may create access keys.
        #[arg(long)]
        with_wrapping_key: bool,
    },
    /// Makes certificates anew that have ended, offline: for a cluster whose nodes refuse each other. Runs where a
    /// metadata node's folder is; nodes that run take their new certificate by themselves.
    ///
    /// Example: plinth cert reissue --config m1/plinth.toml --node m1 --node m2 --node admin
    Reissue {
        /// Configuration file of a metadata node, whose folder holds the CA's key.
        #[arg(long)]
        config: PathBuf,
        /// Folder of a node (its plinth.toml) or of an operator (its profile.toml); repeatable. Without any, the
        /// metadata node's own.
        #[arg(long)]
        node: Vec<PathBuf>,
        /// How long the certificates are valid, in days: 1 to 400; unless told, as the metadata node is configured.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=400))]
        days: Option<u64>,
    },
}

/// Disk commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum DiskCommand {
    /// Lists disks with state, size and fill.
    List,
    /// Opens one more disk folder on a running storage node; run `layout apply` to use it.
    Add {
        /// The node's name.
        node: String,
        /// The folder on that node, where the disk is mounted; empty, or a disk of this cluster.
        path: String,
        /// Makes the folder where it does not exist: on whatever file system is there.
        #[arg(long)]
        create: bool,
    },
}

/// Bucket commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum BucketCommand {
    /// Lists buckets with objects and bytes.
    List,
}

/// Access key commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum KeyCommand {
    /// Creates an access key and shows its secret, once.
    Create {
        /// The account whose buckets the key may use; `root` is the one that the cluster began with.
        #[arg(long)]
        account: String,
        /// What the key is for.
        #[arg(long)]
        description: Option<String>,
    },
    /// Lists access keys, without secrets.
    List,
    /// Revokes an access key at once and for good.
    Revoke {
        /// The access key's id.
        id: String,
    },
}

/// Cluster commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum ClusterCommand {
    /// Join tokens.
    #[command(subcommand)]
    Token(TokenCommand),
}

/// Token commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum TokenCommand {
    /// Creates a token that admits one node, once.
    Create {
        /// Roles that the node may take.
        #[arg(long, value_enum, required = true, value_delimiter = ',')]
        roles: Vec<RoleChoice>,
        /// Minutes until the token expires: 1 to 1440.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1440))]
        minutes: u64,
    },
    /// Lists tokens that have not expired, without their secrets.
    List,
    /// Withdraws a token: it admits nobody from now on.
    Revoke {
        /// The token's id, as `token list` shows it.
        id: String,
    },
}

/// Raft commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum RaftCommand {
    /// Shows every group as every metadata node sees it.
    Status,
    /// Makes a registered metadata node a voter of every group: learner first.
    Add {
        /// The node's name.
        name: String,
    },
    /// Takes a voter out of every group.
    Remove {
        /// The node's name.
        name: String,
    },
}

/// Clock commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum ClockCommand {
    /// Confirms a jump of time by more than a day: deleted data is destroyed on time again.
    ///
    /// Right after all metadata nodes were down for long; wrong while their clocks are.
    Confirm,
}

/// Placement commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum LayoutCommand {
    /// Shows each disk's share of the placement groups.
    Show,
    /// Plans placement groups over all disks and uses them for new stripes; does nothing where they are so already.
    ///
    /// Disks that are down keep their place. The code stays, unless failure domains were added: a code with less
    /// redundancy or over fewer domains must be named.
    ///
    /// Example: plinth layout apply --dry-run
    Apply(LayoutArgs),
}

/// Options of `layout apply`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LayoutArgs {
    /// Code of new stripes as K+M; without it the cluster's own, which grows with the failure domains.
    #[arg(long)]
    pub code: Option<Code>,
    /// Leaves out disks that are down or on nodes that are down.
    #[arg(long)]
    pub skip_down: bool,
    /// Allows a code that bears fewer losses than the present one.
    #[arg(long)]
    pub less_redundancy: bool,
    /// Says what would be done and changes nothing.
    #[arg(long)]
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn a_key_names_its_account() {
        let error = Line::try_parse_from(["plinth", "key", "create"]).expect_err("whose key is it?");
        assert!(error.to_string().contains("--account"), "{error}");
        Line::try_parse_from(["plinth", "key", "create", "--account", "a"]).expect("complete");
    }
}
