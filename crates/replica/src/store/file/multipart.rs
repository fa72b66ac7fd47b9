//! Uploads in parts: each part is a file in a folder of its own under `.tarn-tmp`; completing writes the whole and publishes it.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::PathBuf;

use async_trait::async_trait;
use futures::FutureExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{Error, MultipartId, MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use uuid::Uuid;

use super::dirs::{Root, TEMPORARY};
use super::{FileStore, generic};

fn folder(root: &Root, id: &str) -> Result<PathBuf> {
    // The id comes back from a client: nothing but what was handed out may name a folder.
    let id = Uuid::parse_str(id).map_err(|_| unknown_upload(id))?;
    Ok(root.path.join(TEMPORARY).join(format!("multipart-{}", id.simple())))
}

fn unknown_upload(id: &str) -> Error {
    Error::NotFound { path: id.to_owned(), source: "no such upload".into() }
}

#[async_trait]
impl MultipartStore for FileStore {
    async fn create_multipart(&self, _: &Key) -> Result<MultipartId> {
        let id = Uuid::new_v4().simple().to_string();
        let named = id.clone();
        self.run(move |root| fs::create_dir(folder(root, &named)?).map_err(generic)).await?;
        Ok(id)
    }

    async fn put_part(&self, _: &Key, id: &MultipartId, part_idx: usize, data: PutPayload) -> Result<PartId> {
        let id = id.clone();
        self.run(move |root| {
            let folder = folder(root, &id)?;
            let name = format!("{part_idx:08}-{}", Uuid::new_v4().simple());
            let mut file = match File::create_new(folder.join(&name)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(unknown_upload(&id)),
                other => other.map_err(generic)?,
            };
            for piece in &data {
                std::io::Write::write_all(&mut file, piece).map_err(generic)?;
            }
            Ok(PartId { content_id: name })
        })
        .await
    }

    async fn complete_multipart(&self, path: &Key, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let (key, id) = (path.clone(), id.clone());
        self.run(move |root| {
            let folder = folder(root, &id)?;
            let mut files = Vec::new();
            for part in &parts {
                let plain = part.content_id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
                let mut file = File::open(folder.join(&part.content_id))
                    .ok()
                    .filter(|_| plain)
                    .ok_or_else(|| unknown_upload(&id))?;
                file.rewind().map_err(generic)?;
                files.push(file);
            }
            let temporary = root.temporary_from(&key, &mut Chain { files, at: 0 })?;
            let done = root.publish(temporary, &key, false)?;
            let _ = fs::remove_dir_all(folder);
            Ok(done)
        })
        .await
    }

    async fn abort_multipart(&self, _: &Key, id: &MultipartId) -> Result<()> {
        let id = id.clone();
        self.run(move |root| match fs::remove_dir_all(folder(root, &id)?) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(generic(error)),
            _ => Ok(()),
        })
        .await
    }
}

/// Files read one after the other.
struct Chain {
    files: Vec<File>,
    at: usize,
}

impl Read for Chain {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while let Some(file) = self.files.get_mut(self.at) {
            let read = file.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            self.at += 1;
        }
        Ok(0)
    }
}

/// A streaming upload over the same parts.
#[derive(Debug)]
pub(super) struct Upload {
    store: FileStore,
    key: Key,
    id: MultipartId,
    parts: std::sync::Arc<std::sync::Mutex<Vec<Option<PartId>>>>,
}

impl Upload {
    pub async fn start(store: FileStore, key: Key) -> Result<Self> {
        let id = store.create_multipart(&key).await?;
        Ok(Self { store, key, id, parts: std::sync::Arc::default() })
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (store, key, id, parts) = (self.store.clone(), self.key.clone(), self.id.clone(), self.parts.clone());
        let index = {
            let mut parts = parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            parts.push(None);
            parts.len() - 1
        };
        async move {
            let part = store.put_part(&key, &id, index, data).await?;
            parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[index] = Some(part);
            Ok(())
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let parts: Option<Vec<PartId>> =
            self.parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).drain(..).collect();
        let parts = parts.ok_or_else(|| generic("a part was not uploaded"))?;
        self.store.complete_multipart(&self.key, &self.id, parts).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.store.abort_multipart(&self.key, &self.id).await
    }
}
