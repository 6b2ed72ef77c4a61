//! One CA takes the place of another: announce, switch, finish.
//!
//! 1. [`begin`]: the new CA is made and trusted beside the old one, which still signs.
//! 2. [`switch`], when every replica has seen that: the new one signs. Servers show a chain that leads to both.
//! 3. [`finish`], when every node has a certificate of the new one: the old one is trusted no longer.
//!
//! Each step is one write, and can be repeated after it was interrupted.

use super::material::{Material, Rotation};
use super::source::{AuthorityError, Source};

/// What is trusted when it returns.
pub async fn begin(source: &Source, now_s: u64) -> Result<Material, AuthorityError> {
    let material = source.load_or_make(now_s).await?;
    match &material.rotation {
        Some(_) if material.cross_of_active().is_some() => Err(AuthorityError::UnderWay),
        // An earlier call did not get to the switch.
        Some(_) => Ok(material),
        None => {
            let rotation = Rotation::begin(&material.active, now_s).map_err(AuthorityError::Make)?;
            source.store_rotation(&rotation).await?;
            Ok(Material { rotation: Some(rotation), ..material })
        }
    }
}

pub async fn switch(source: &Source, now_s: u64) -> Result<Material, AuthorityError> {
    let material = source.load_or_make(now_s).await?;
    let rotation = material.rotation.clone().ok_or(AuthorityError::NoChange)?;
    source.store_active(&rotation.new).await?;
    Ok(Material { active: rotation.new.clone(), rotation: Some(rotation) })
}

pub async fn finish(source: &Source, now_s: u64) -> Result<Material, AuthorityError> {
    let material = source.load_or_make(now_s).await?;
    if material.cross_of_active().is_none() {
        return Err(AuthorityError::NoChange);
    }
    source.remove_rotation(&material, now_s).await?;
    Ok(Material { rotation: None, ..material })
}
