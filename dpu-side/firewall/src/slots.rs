//! Objects in numbered places, found by a key. An object keeps its number for as long as it is there.

use std::{borrow::Borrow, collections::HashMap, hash::Hash, sync::Arc};

/// The objects. A copy shares the keys until one is added or removed.
#[derive(Debug, Clone)]
pub(crate) struct Slots<K, T> {
    items: Vec<Option<T>>,
    ids: Arc<HashMap<K, u32>>,
    free: Vec<u32>,
}

impl<K, T> Default for Slots<K, T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            ids: Arc::default(),
            free: Vec::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, T: Clone> Slots<K, T> {
    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// One more than the highest number that there ever was.
    pub(crate) fn end(&self) -> usize {
        self.items.len()
    }

    #[inline]
    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        self.items.get(id as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.items.get_mut(id as usize)?.as_mut()
    }

    pub(crate) fn id<Q>(&self, key: &Q) -> Option<u32>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.ids.get(key).copied()
    }

    pub(crate) fn by_key<Q>(&self, key: &Q) -> Option<(u32, &T)>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let id = self.id(key)?;
        Some((id, self.get(id)?))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..)
            .zip(&self.items)
            .filter_map(|(id, item)| Some((id, item.as_ref()?)))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.ids.keys()
    }

    /// Puts the object in the place of that key, which is made if there is none.
    pub(crate) fn put(&mut self, key: K, item: T) -> u32 {
        if let Some(id) = self.id(&key) {
            if let Some(place) = self.items.get_mut(id as usize) {
                *place = Some(item);
            }
            return id;
        }
        let id = match self.free.pop() {
            Some(id) => {
                if let Some(place) = self.items.get_mut(id as usize) {
                    *place = Some(item);
                }
                id
            }
            None => {
                // Every table is far smaller than this by its limit.
                let id = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
                self.items.push(Some(item));
                id
            }
        };
        Arc::make_mut(&mut self.ids).insert(key, id);
        id
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<(u32, T)> {
        let id = self.id(key)?;
        let item = self.items.get_mut(id as usize)?.take()?;
        Arc::make_mut(&mut self.ids).remove(key);
        self.free.push(id);
        Some((id, item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_keeps_its_number_and_a_free_one_is_used_again() {
        let mut slots = Slots::<&str, u8>::default();
        assert_eq!([slots.put("a", 1), slots.put("b", 2), slots.put("c", 3)], [0, 1, 2]);
        let before = slots.clone();
        assert_eq!(slots.remove(&"b"), Some((1, 2)));
        assert_eq!(slots.remove(&"b"), None);
        assert_eq!((slots.put("a", 4), slots.put("d", 5)), (0, 1));
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(0, &4), (1, &5), (2, &3)]);
        assert_eq!((slots.len(), slots.end(), slots.by_key(&"d")), (3, 3, Some((1, &5))));
        assert_eq!((before.by_key(&"b"), before.id(&"d")), (Some((1, &2)), None));
    }
}
