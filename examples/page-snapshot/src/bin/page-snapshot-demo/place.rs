//! The directory of one run, which goes with it: the bus, the application's configuration, Chromium's profile.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The longest path that the directory can lie in: Chromium makes a socket some 85 bytes further down, whose path has room for 107.
const BASE_MAX: usize = 22;

/// The directory; removed when this is dropped.
pub struct Place(PathBuf);

impl Place {
    /// A new one, for this user only, with a short path.
    pub fn create() -> Result<Place, String> {
        let base = Some(std::env::temp_dir()).filter(|base| base.as_os_str().len() <= BASE_MAX);
        let path = base.unwrap_or_else(|| "/tmp".into()).join(format!("objdemo-{}", std::process::id()));
        // Whoever had this number before is dead.
        let _none = fs::remove_dir_all(&path);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| format!("cannot make the directory {}: {error}", path.display()))?;
        Ok(Place(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("demo: {} could not be removed: {error}", self.0.display());
        }
    }
}
