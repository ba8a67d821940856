//! Side by side with other stores: one core each, the same records, the same generator, in one run.
//!
//! Rooms: [`plan`] (command line to checked plan) → [`install`] (finds or fetches the peers) → [`run`] (starts, alternates,
//! proves and stops them) → [`report`]. Below them: [`records`] the content and its checksum · [`messages`] the content in each
//! one's wire form · [`systems`] how each is started, spoken to and read back · [`process`] a server's process ·
//! [`generator`], [`connection`], [`replies`], [`schedule`] sending and measuring · [`clients`] sending through the client
//! crate · [`measure`] figures and medians.
//!
//! Everything that sends runs on one thread that is pinned to a core of its own, and every server on another.

pub mod clients;
pub mod connection;
pub mod generator;
pub mod install;
pub mod measure;
pub mod messages;
pub mod msgpack;
pub mod plan;
pub mod process;
pub mod records;
pub mod replies;
pub mod report;
pub mod run;
pub mod schedule;
pub mod systems;
