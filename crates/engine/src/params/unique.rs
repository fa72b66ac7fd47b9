//! JSON whose objects name nothing twice: of two values under one name a client can't know which one counts.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value as Json};

/// For `deserialize_with`; null is nothing.
pub(crate) fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Ok(Option::<Unique>::deserialize(deserializer)?.map(|unique| unique.0))
}

struct Unique(Json);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        Number::from_f64(value).map(Json::Number).ok_or_else(|| E::custom("a number that is none"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut object = Map::new();
        while let Some((name, Unique(value))) = entries.next_entry::<String, Unique>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format_args!("`{name}` is there twice")));
            }
            object.insert(name, value);
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Body {
        #[serde(default, deserialize_with = "optional")]
        params: Option<Json>,
    }

    #[test]
    fn json_comes_as_it_is_and_no_name_comes_twice() {
        let params = |text: &str| serde_json::from_str::<Body>(text).map(|body| body.params);
        for text in [r#"[1,-2,1.5,18446744073709551615,"x",true,null,{"a":{"a":[]}}]"#, r#"{"a":1,"b":"\u00e9"}"#] {
            let expected: Json = serde_json::from_str(text).expect("JSON");
            assert_eq!(params(&format!("{{\"params\":{text}}}")).expect("is read"), Some(expected));
        }
        assert_eq!(params("{}").expect("is read"), None);
        assert_eq!(params(r#"{"params":null}"#).expect("is read"), None);
        for text in [r#"{"a":1,"a":2}"#, r#"[{"type":"DATE","type":"TIME","value":1}]"#, r#"{"a":{"b":1,"\u0062":1}}"#]
        {
            let error = params(&format!("{{\"params\":{text}}}")).expect_err("refused").to_string();
            assert!(error.contains("is there twice"), "{error}");
        }
    }
}
