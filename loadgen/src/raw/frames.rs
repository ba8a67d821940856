//! The pre-built frames of a raw run: bodies made once, routed as the server's topology asks.

use crate::clock::unix_us;
use crate::plan::Plan;
use crate::traffic::{Pool, Traffic, record_fields};
use anyhow::{Result, bail};
use postanalytics_protocol::frames::Welcome;
use postanalytics_protocol::{BatchBuilder, FrameHeader, HEADER_BYTES, Source, shard_of};
use std::sync::Arc;

/// Most memory of all bodies together.
const POOL_BYTES_MAX: usize = 2 << 30;

/// One frame: the body as it is sent, the header as it is stamped.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) header: FrameHeader,
    pub(super) body: Vec<u8>,
}

impl Frame {
    /// Bytes on the wire.
    pub(super) fn wire_bytes(&self) -> u64 {
        (HEADER_BYTES + self.body.len()) as u64
    }
}

/// All frames, by shard.
#[derive(Debug)]
pub(super) struct FramePool {
    by_shard: Vec<Vec<Frame>>,
    /// Distinct sources among their records.
    pub(super) sources: u64,
}

impl FramePool {
    /// Builds frames of `batch` records each until every source has a record and every shard has frames.
    pub(super) fn build(plan: &Plan, batch: usize, welcome: &Welcome) -> Result<Self> {
        let sources = plan.sources;
        let pool_bytes = sources as usize * plan.record_bytes;
        if pool_bytes > POOL_BYTES_MAX {
            bail!(
                "{sources} sources of {} bytes a record are {pool_bytes} bytes of frames, the limit is {POOL_BYTES_MAX}; \
                 choose a smaller --record-bytes or --sources",
                plan.record_bytes
            );
        }
        let mut traffic = Traffic::new(Arc::new(Pool::new(plan.mix, plan.seed, plan.record_bytes)), plan.seed, sources);
        let shards = welcome.shard_count;
        let mut builders = vec![BatchBuilder::default(); shards as usize];
        let mut by_shard: Vec<Vec<Frame>> = (0..shards).map(|_| Vec::new()).collect();
        let (limit, event_us) = (welcome.max_body_bytes as usize, unix_us());
        let mut next_source = 0u32;
        // The second lap fills up the frames that the first left unfinished.
        while next_source < sources || by_shard.iter().any(Vec::is_empty) || builders.iter().any(|builder| !builder.is_empty()) {
            let request = traffic.next_of(next_source % sources, event_us);
            let shard = shard_of(Source::of(request.client_ip), welcome.routing_seed, shards) as usize;
            let is_second_lap = next_source >= sources;
            next_source = next_source.wrapping_add(1);
            if is_second_lap && builders[shard].is_empty() && !by_shard[shard].is_empty() {
                continue;
            }
            if let Err(error) = builders[shard].push(&record_fields(&request), limit) {
                bail!(
                    "--batch {batch} of --record-bytes {} does not fit the server's frames: {error}; choose a smaller one",
                    plan.record_bytes
                );
            }
            if builders[shard].len() == batch {
                by_shard[shard].push(finish(&mut builders[shard])?);
            }
        }
        Ok(Self { by_shard, sources: u64::from(sources) })
    }

    /// Number of frames.
    pub(super) fn len(&self) -> usize {
        self.by_shard.iter().map(Vec::len).sum()
    }

    /// The frames of a shard, at least one.
    pub(super) fn of_shard(&self, shard: u32) -> &[Frame] {
        &self.by_shard[shard as usize]
    }
}

fn finish(builder: &mut BatchBuilder) -> Result<Frame> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + builder.body_bytes());
    builder.encode_frame(0, 0, 0, &mut bytes);
    builder.clear();
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else { bail!("a frame without a header: a defect") };
    Ok(Frame { header: FrameHeader::decode(header, u32::MAX)?, body: body.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Arguments, Plan};
    use clap::Parser;
    use postanalytics_protocol::ValidBatch;
    use postanalytics_protocol::frames::PackageVersion;
    use std::collections::HashSet;

    #[test]
    fn every_frame_is_valid_full_and_of_its_shard() {
        let arguments = Arguments::parse_from(["loadgen", "--raw", "--record-bytes", "300"]);
        let plan = Plan::from_arguments(&arguments.run, &[]).expect("a plan");
        let welcome = Welcome {
            package: PackageVersion::default(),
            server_id: [0; 16],
            deployment_id: [0; 16],
            epoch: 1,
            shard_count: 3,
            shard: 0,
            routing_seed: 77,
            identity_key: [0; 32],
            server_us: 0,
            window_bytes: 1 << 20,
            max_body_bytes: 1 << 20,
            protocol: 1,
            schema: 1,
            stored: Vec::new(),
        };
        let pool = FramePool::build(&plan, 48, &welcome).expect("a pool");
        let mut sources = HashSet::new();
        for shard in 0..3 {
            assert!(pool.of_shard(shard).len() > 500);
            for frame in pool.of_shard(shard) {
                let batch =
                    ValidBatch::parse(frame.header.schema, frame.header.record_count, &frame.body).expect("a valid batch");
                assert_eq!(batch.len(), 48);
                for record in batch.records() {
                    let source = Source::of_bytes(&record.fields().client_ip);
                    assert_eq!(shard_of(source, 77, 3), shard);
                    sources.insert(source);
                }
            }
        }
        assert!(sources.len() >= plan.sources as usize, "{}", sources.len());
        let error = FramePool::build(&plan, 10_000, &welcome).expect_err("3 MB are more than a frame may have");
        assert!(error.to_string().contains("--batch 10000"), "{error}");
    }
}
