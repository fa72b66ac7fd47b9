//! Arrow: one thread reads and checks groups of batches while this one inserts them.

use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use super::{
    Code, Failure, Loaded, Loading,
    target::{Column, Target, Way},
    types,
};
use crate::load::{
    groups::Groups,
    guarded,
    ipc::IpcReader,
    read_failure,
    reader::BodyReader,
    scan::{Group, Open, ROW_GROUP, Source},
};

/// What the reading thread says.
enum Said {
    /// Rows, and whether they are the last.
    Group(Group, bool),
    /// The body ended well behind its last rows.
    Whole,
    Failed(Failure),
}

impl Loading<'_, '_> {
    pub(super) fn arrow(&mut self, body: BodyReader<'_>) -> Result<Loaded, Failure> {
        let engine = self.run.engine;
        let _place = engine.loads.take(|| self.watch.look(Duration::ZERO))?;
        let reader = IpcReader::open(body, engine.spool.clone())?;
        let was: Vec<Option<String>> =
            reader.schema().fields().iter().map(|field| field.metadata().get(types::KEY).cloned()).collect();
        let opened = engine.mart.sources.open(Source::new(&self.run.kept.connection, reader.schema())?);
        let columns = opened.source.describe().into_iter().zip(was);
        let columns: Vec<Column> = columns.map(|((name, ty), was)| Column { name, ty, was }).collect();
        let groups = Groups::new(reader, opened.source.clone(), engine.limits);
        // Nothing waits in between: one group is inserted while the next is read.
        let (sender, receiver) = sync_channel(0);
        thread::scope(|scope| {
            let reading = thread::Builder::new().name("load".into()).spawn_scoped(scope, move || read(groups, &sender));
            if let Err(error) = reading {
                tracing::error!(%error, "no thread for a load");
                return Err(Failure::new(Code::Limited, "the engine can't start another thread").transient());
            }
            let loaded = self.insert_all(&opened, &columns, &receiver);
            self.watch.abandoned.store(true, Ordering::Relaxed);
            drop(receiver);
            loaded
        })
    }

    fn insert_all(&mut self, opened: &Open<'_>, columns: &[Column], said: &Receiver<Said>) -> Result<Loaded, Failure> {
        let first = next(said)?.ok_or_else(no_group)?;
        self.begin()?;
        let target = Target::find(self)?;
        let way = target.way(self, columns)?;
        if !first.1 {
            self.unordered()?;
        }
        let rows = self.insert_groups(opened, &way, first, said)?;
        self.ordered();
        way.finish(self)?;
        Ok(Loaded { rows, created: target.created })
    }

    fn insert_groups(
        &mut self,
        opened: &Open<'_>,
        way: &Way,
        (mut group, mut last): (Group, bool),
        said: &Receiver<Said>,
    ) -> Result<u64, Failure> {
        let mut rows = 0;
        loop {
            if let Some(reason) = self.run.query.reason() {
                return Err(reason.into());
            }
            rows += group.rows() as u64;
            self.insert_group(opened, group, way)?;
            if rows >= ROW_GROUP as u64 {
                // Soon rather than at the end.
                self.run.check_bulk()?;
            }
            if last {
                break;
            }
            (group, last) = next(said)?.ok_or_else(no_group)?;
        }
        match next(said)? {
            None => Ok(rows),
            Some(_) => Err(no_group()),
        }
    }

    fn insert_group(&mut self, opened: &Open<'_>, group: Group, way: &Way) -> Result<(), Failure> {
        if group.rows() == 0 {
            return Ok(());
        }
        opened.source.put(Some(Arc::new(group)));
        let inserted = self.execute(&way.insert(&opened.call()));
        opened.source.put(None);
        match (inserted, opened.source.take_failure()) {
            (Err(failure), Some(own)) if failure.code == Code::Sql => Err(own),
            (inserted, _) => inserted.map(drop),
        }
    }
}

/// The next group; `None` when the body has ended well.
fn next(said: &Receiver<Said>) -> Result<Option<(Group, bool)>, Failure> {
    match said.recv() {
        Ok(Said::Group(group, last)) => Ok(Some((group, last))),
        Ok(Said::Whole) => Ok(None),
        Ok(Said::Failed(failure)) => Err(failure),
        Err(_) => Err(no_group()),
    }
}

fn no_group() -> Failure {
    Failure::new(Code::Internal, "the body's thread ended early")
}

/// Says all of the body, or why not.
fn read(groups: Groups<BodyReader<'_>>, sender: &SyncSender<Said>) {
    let said = match guarded(|| pass_on(groups, sender)) {
        Ok(true) => Said::Whole,
        Ok(false) => return,
        Err(failure) => Said::Failed(failure),
    };
    // Gone means that nobody wants to know.
    let _ = sender.send(said);
}

/// False if nobody wants more.
fn pass_on(mut groups: Groups<BodyReader<'_>>, sender: &SyncSender<Said>) -> Result<bool, Failure> {
    while let Some((group, last)) = groups.next_group()? {
        if sender.send(Said::Group(group, last)).is_err() {
            return Ok(false);
        }
    }
    match groups.into_reader().into_rest().drain().map_err(read_failure)? {
        0 => Ok(true),
        _ => Err(Failure::new(Code::Invalid, "bytes follow the end mark of the Arrow stream")),
    }
}
