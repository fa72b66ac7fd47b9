//! Ships a base: every live block of the file at one checkpoint, a manifest, and the record that makes it count.
//!
//! Runs while the engine goes on writing: live blocks stay as they are until the next checkpoint, and there is none before this
//! base is won.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use object_store::ObjectStoreExt;

use super::blocks::{Found, Scan};
use super::{BaseState, Draft, Effect, Shipper, blocking, now_us, open};
use crate::DB_FILE;
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::image::Image;
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::pack::BlockMap;
use crate::position::Position;
use crate::record::{Kind, Tip};

impl Shipper {
    /// Ships the file as of checkpoint `iteration` and returns the durable position: right after that checkpoint.
    /// Nothing is done if the log is there already (the checkpoint had nothing to do).
    pub async fn ship_base(&mut self, iteration: u64) -> Result<Position> {
        self.settle().await?;
        if !self.needs_base && self.head.tip.is_some_and(|tip| tip.iteration == iteration) {
            return Ok(self.durable());
        }
        let path = self.dir.join(DB_FILE);
        let (file, image) = blocking(move || read_whole(&path)).await?;
        if image.iteration != iteration {
            return Err(Error::Misuse(format!("the engine says iteration {iteration}, its file {}", image.iteration)));
        }
        let id = self.image_id()?;
        let live: HashSet<u64> = image.live().collect();
        let found = self.upload_live(&file, &image).await?;
        let manifest = self.manifest(&image, &live, &found)?;
        let state = self.next_state(&image, live, found, &manifest);
        let (name, hash) = self.put_manifest(&manifest).await?;
        let kind =
            Kind::Base { iteration, manifest: name, manifest_hash: hash, file_bytes: manifest.file_bytes(), image: id };
        let draft = Draft {
            epoch: self.epoch(),
            base_slot: self.head.slot + 1,
            tip: Some(Tip::at_base(iteration)),
            kind,
            time_us: now_us(),
            detour: None,
        };
        let again = blocking(move || Image::read_headers(&file)).await?;
        if again.header != image.header {
            return Err(Error::Diverged("a checkpoint ran while the base was read".into()));
        }
        self.append(draft, &[], Effect::Base(Box::new(state))).await?;
        Ok(self.durable())
    }

    /// Which file this is: the id drawn when the checkpoint was begun, or when the file was made.
    fn image_id(&self) -> Result<uuid::Uuid> {
        let local = self.local()?;
        if self.base_anew {
            return Ok(local.image);
        }
        let intent = local.intent.filter(|intent| intent.covers(self.head.slot, self.head.hash));
        intent
            .map(|intent| intent.image)
            .ok_or_else(|| Error::Diverged("a checkpoint ran that was not begun here".into()))
    }

    async fn upload_live(&self, file: &Arc<File>, image: &Image) -> Result<Found> {
        let same_size = self.base.block_bytes == image.block_bytes;
        let known = if same_size { Arc::clone(&self.base.blocks) } else { Arc::default() };
        let by_hash = if same_size || self.base.block_bytes == 0 { self.base.contents() } else { Arc::default() };
        let scan = Scan {
            file: Arc::clone(file),
            block_bytes: image.block_bytes,
            blocks: image.live().collect(),
            known,
            by_hash,
            stamps: Arc::default(),
            epoch: self.head.epoch,
        };
        scan.run(&self.log).await
    }

    fn manifest(&self, image: &Image, live: &HashSet<u64>, found: &Found) -> Result<Manifest> {
        let mut blocks = BlockMap::with_capacity(live.len());
        for block in live {
            match found.changed.get(block).or_else(|| self.base.blocks.get(block)) {
                Some(reference) => blocks.insert(*block, reference.clone()),
                None if found.empty.contains(block) => continue,
                None => return Err(Error::Misuse(format!("block {block} was not read"))),
            };
        }
        Ok(Manifest {
            header: image.header.clone(),
            iteration: image.iteration,
            block_bytes: image.block_bytes,
            block_count: image.block_count,
            free_list_known: image.free.is_some(),
            blocks,
        })
    }

    fn next_state(&self, image: &Image, live: HashSet<u64>, found: Found, manifest: &Manifest) -> BaseState {
        // What could change before this checkpoint and counts as live after it: written by the checkpoint or a commit, or freed
        // and still being read. The two can't be told apart, so both stay under watch.
        let could_change = |block: &u64| !self.base.live.contains(block) || self.base.suspects.contains_key(block);
        let first = self.head.tip.is_none();
        let suspects = if first {
            HashMap::new()
        } else {
            found.stamps.into_iter().filter(|(block, _)| could_change(block)).collect()
        };
        let freed = self.base.blocks.iter().filter(|(block, _)| !manifest.blocks.contains_key(block));
        let mut stale = HashMap::clone(&self.base.stale);
        stale.extend(freed.map(|(_, reference)| (reference.hash, reference.clone())));
        BaseState {
            stale: Arc::new(stale),
            blocks: Arc::new(manifest.blocks.clone()),
            live: Arc::new(live),
            free_list_known: image.free.is_some(),
            block_bytes: image.block_bytes,
            suspects: Arc::new(suspects),
            area_blocks: 0,
        }
    }

    async fn put_manifest(&self, manifest: &Manifest) -> Result<(String, Hash)> {
        let bytes = manifest.encode(self.log.incarnation);
        let name = Layout::new_manifest(self.epoch(), manifest.iteration);
        let key = self.log.layout.named(&name).expect("own manifest names are well formed");
        let hash = Hash::of(&bytes);
        self.log.stores.data.put(&key, bytes.into()).await.map_err(|error| Error::store(&key, error))?;
        Ok((name, hash))
    }
}

fn read_whole(path: &std::path::Path) -> Result<(Arc<File>, Image)> {
    let file = open(path)?;
    let image = Image::read(&file)?;
    Ok((Arc::new(file), image))
}
