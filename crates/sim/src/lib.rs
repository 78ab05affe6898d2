//! A whole cluster in one process: real metadata nodes, real storage nodes, a real client, and a
//! network whose faults are set by the test.
//!
//! [`Cluster::start`] founds a cluster in a temporary folder; its nodes reach each other through a
//! [`LocalNetwork`](plinth_transport::LocalNetwork), so that cutting one off, losing messages and
//! stopping a node take one call. Disks are folders behind io_uring and time is real: what this
//! crate proves is that the parts fit together; each part's crashes are proved in its own crate on
//! simulated disks. Development only: nothing that ships depends on it.

mod cluster;

pub use cluster::{Cluster, Shape};
