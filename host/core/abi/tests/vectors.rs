// SPDX-License-Identifier: Apache-2.0
//! The vectors in `tests/data/abi`, which Python and a C compiler read too.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tmem_abi::pool::{self, Name};
use tmem_abi::wire::{self, ITEM_SIZE, REPLY_SIZE, REQUEST_SIZE};
use tmem_abi::{
    Agreed, Data, FrameReader, Guest, Header, Item, KeyList, Kind, NewPool, Op, Packing, Reply, Request,
    Shape, Side, Status, feature, frame, parse,
};

fn load(name: &str) -> Value {
    let path = format!("{}/../../../tests/data/abi/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn vectors(name: &str, list: &str) -> Vec<Value> {
    load(name)[list].as_array().unwrap().clone()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn u64s(list: &Value) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
}

fn u32_of(v: &Value) -> u32 {
    v.as_u64().unwrap().try_into().unwrap()
}

fn header(fields: &Value) -> Header {
    Header {
        op: u32_of(&fields["op"]) as u16,
        flags: u32_of(&fields["flags"]) as u16,
        pool: u32_of(&fields["pool"]),
        object: u64s(&fields["object"]).try_into().unwrap(),
        index: u32_of(&fields["index"]),
        count: u32_of(&fields["count"]),
        offset: u32_of(&fields["offset"]),
        length: u32_of(&fields["length"]),
        argument: fields["argument"].as_u64().unwrap(),
        cookie: fields["cookie"].as_u64().unwrap(),
    }
}

struct Told {
    features: Option<u64>,
    pools: BTreeMap<u32, Shape>,
}

impl Guest for Told {
    type Pool = Shape;
    fn agreed(&self) -> Option<Agreed> {
        self.features.map(|features| Agreed { version: 1, features })
    }
    fn pool(&self, number: u32) -> Option<(Shape, Shape)> {
        self.pools.get(&number).map(|s| (*s, *s))
    }
}

fn pools() -> BTreeMap<u32, Shape> {
    let all = load("requests");
    let shape = |s: &Value| Shape {
        page_size: u32_of(&s["page_size"]),
        pages: Some(u32_of(&s["pages"])).filter(|&n| n != 0),
        packed: s["packed"].as_bool().unwrap(),
    };
    all["pools"].as_object().unwrap().iter().map(|(n, s)| (n.parse().unwrap(), shape(s))).collect()
}

fn new_pool(new: &NewPool) -> Value {
    let (kind, uuid) = match new.name {
        Name::Private => ("private", [0; 16]),
        Name::Attach(uuid) => ("attach", uuid),
        Name::Shared(uuid) => ("shared", uuid),
    };
    let codec = match new.packing {
        None => 0,
        Some(Packing::Lz4) => 1,
        Some(Packing::Zstd) => 2,
    };
    json!({
        "persistent": new.persistent, "kind": kind, "uuid": hex(&uuid), "codec": codec,
        "page_size": new.shape().page_size, "pages": new.pages.unwrap_or(0),
    })
}

/// A request in the vectors' words.
fn means(request: &Request<Shape>, list: &KeyList) -> Value {
    let key = |k: &tmem_abi::Key| json!([k.object[0], k.object[1], k.object[2], k.index]);
    let many = |keys: &tmem_abi::Keys| Value::from(keys.iter(list).map(|k| key(&k)).collect::<Vec<_>>());
    let packed = |data: &Data| match data {
        Data::Plain => 0,
        Data::Packed(n) => *n,
    };
    match request {
        Request::Hello { features } => json!({"op": "hello", "features": features}),
        Request::NewPool(new) => json!({"op": "new-pool", "new_pool": new_pool(new)}),
        Request::DestroyPool { .. } => json!({"op": "destroy-pool"}),
        Request::NewPage { key: k, .. } => json!({"op": "new-page", "keys": [key(k)]}),
        Request::Put { keys, data, .. } => {
            json!({"op": "put", "keys": many(keys), "packed": packed(data)})
        }
        Request::Get { keys, .. } => json!({"op": "get", "keys": many(keys)}),
        Request::FlushPage { keys, .. } => json!({"op": "flush-page", "keys": many(keys)}),
        Request::FlushObject { object, .. } => json!({"op": "flush-object", "object": object}),
        Request::Read { key: k, part, .. } => {
            json!({"op": "read", "keys": [key(k)], "part": [part.offset, part.length]})
        }
        Request::Write { key: k, part, .. } => {
            json!({"op": "write", "keys": [key(k)], "part": [part.offset, part.length]})
        }
        Request::Exchange { put, get, data, .. } => {
            json!({"op": "exchange", "keys": [key(put), key(get)], "packed": packed(data)})
        }
    }
}

#[test]
fn requests() {
    for v in vectors("requests", "vectors") {
        let name = &v["name"];
        let raw = bytes(&v["hex"]);
        let told = Told { features: v["features"].as_u64(), pools: pools() };
        let header = header(&v["fields"]);
        let first: &[u8; REQUEST_SIZE] = raw.first_chunk().unwrap();
        assert_eq!(Header::decode(first), header, "{name}");
        assert_eq!(header.encode(), *first, "{name}");
        for (item, listed) in raw[REQUEST_SIZE..].chunks_exact(ITEM_SIZE).zip(v["items"].as_array().unwrap())
        {
            let n = u64s(listed);
            let want = Item { object: [n[0], n[1], n[2]], index: n[3] as u32, reserved: n[4] as u32 };
            assert_eq!(Item::decode(item.try_into().unwrap()), want, "{name}");
            assert_eq!(want.encode(), item, "{name}");
        }
        let sent = (raw.len() - REQUEST_SIZE) as u64 + v["data"].as_u64().unwrap();
        let mut list = KeyList::default();
        let mut items = raw[REQUEST_SIZE..].chunks_exact(ITEM_SIZE);
        let next = |out: &mut [u8; ITEM_SIZE]| out.copy_from_slice(items.next().unwrap());
        match parse(&told, &header, sent, v["room"].as_u64().unwrap(), &mut list, next) {
            Ok(request) => assert_eq!(means(&request, &list), v["means"], "{name}"),
            Err(status) => assert_eq!(json!(status.name()), v["status"], "{name}"),
        }
    }
}

#[test]
fn replies() {
    for v in vectors("replies", "vectors") {
        let fields = &v["fields"];
        let done = u64s(&fields["done"]);
        let reply = Reply {
            status: Status::from_wire(u32_of(&fields["status"])).unwrap(),
            cookie: fields["cookie"].as_u64().unwrap(),
            value: fields["value"].as_u64().unwrap(),
            done: u128::from(done[0]) | u128::from(done[1]) << 64,
        };
        let raw: [u8; REPLY_SIZE] = bytes(&v["hex"]).try_into().unwrap();
        assert_eq!(reply.encode(), raw, "{}", v["name"]);
        assert_eq!(Reply::decode(&raw), Some(reply), "{}", v["name"]);
    }
    for v in vectors("replies", "bad") {
        assert_eq!(Reply::decode(&bytes(&v["hex"]).try_into().unwrap()), None, "{}", v["name"]);
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Request => "request",
        Kind::Reply => "reply",
        Kind::Control => "control",
        Kind::Sync => "sync",
    }
}

#[test]
fn frames() {
    let sync: [u8; 16] = bytes(&load("frames")["sync"]).try_into().unwrap();
    for v in vectors("frames", "vectors") {
        for piece in [1, 3, 24, 1 << 20] {
            let side = if v["side"] == "host" { Side::Host(sync) } else { Side::Guest };
            let mut reader = FrameReader::new(side);
            let (mut found, mut ends) = (Vec::new(), false);
            for mut input in bytes(&v["hex"]).chunks(piece) {
                loop {
                    match reader.next(&mut input) {
                        Ok(Some(f)) => found.push(json!({"kind": kind(f.kind), "hex": hex(f.body)})),
                        Ok(None) => break,
                        Err(_) => {
                            ends = true;
                            break;
                        }
                    }
                }
            }
            assert_eq!(Value::from(found), v["frames"], "{} in pieces of {piece}", v["name"]);
            assert_eq!(ends, v["ends"].as_bool().unwrap(), "{} in pieces of {piece}", v["name"]);
        }
    }
}

#[test]
fn constants() {
    let all = load("constants");
    let constants: BTreeMap<String, u64> = all["constants"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.clone(), value.as_u64().unwrap()))
        .collect();
    let mut ours: Vec<(String, u64)> = [
        ("ABI_VERSION", u64::from(wire::VERSION)),
        ("BATCH_MAX", u64::from(wire::BATCH_MAX)),
        ("DATA_MAX", u64::from(wire::DATA_MAX)),
        ("POOLS_MAX", u64::from(wire::POOLS_MAX)),
        ("PAGE_SHIFT", u64::from(wire::PAGE_SHIFT)),
        ("ORDER_MAX", u64::from(wire::ORDER_MAX)),
        ("REQUEST_LIST", u64::from(wire::REQUEST_LIST)),
        ("REQUEST_FLAGS", u64::from(wire::REQUEST_LIST)),
        ("FEATURE_BATCH", feature::BATCH),
        ("FEATURE_LIST", feature::LIST),
        ("FEATURE_RANGE", feature::RANGE),
        ("FEATURE_EXCHANGE", feature::EXCHANGE),
        ("FEATURE_LARGE", feature::LARGE),
        ("FEATURE_PACKED", feature::PACKED),
        ("FEATURE_SHARED", feature::SHARED),
        ("FEATURE_NEW_PAGE", feature::NEW_PAGE),
        ("FEATURES_ALL", feature::ALL),
        ("POOL_PERSISTENT", pool::PERSISTENT),
        ("POOL_SHARED", pool::SHARED),
        ("POOL_PACKED", pool::PACKED),
        ("POOL_ATTACH", pool::ATTACH),
        ("POOL_ORDER_SHIFT", u64::from(pool::ORDER_SHIFT)),
        ("POOL_CODEC_SHIFT", u64::from(pool::CODEC_SHIFT)),
        ("POOL_FLAGS", pool::FLAGS),
        ("FRAME_MAX", frame::FRAME_MAX as u64),
        ("CONTROL_MAX", frame::CONTROL_MAX as u64),
        ("SYNC_SIZE", frame::SYNC_SIZE as u64),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let upper = |name: &str| name.to_uppercase().replace('-', "_");
    ours.extend(Op::ALL.map(|op| (format!("OP_{}", upper(op.name())), op as u64)));
    ours.extend(Status::ALL.map(|s| (upper(s.name()), s as u64)));
    ours.extend(Kind::ALL.map(|k| (format!("FRAME_{}", upper(kind(k))), k as u64)));
    for (name, value) in &ours {
        assert_eq!(constants.get(&format!("TMEM_{name}")), Some(value), "{name}");
    }
    // Codecs are a type here, masks follow from shifts, and virtio's are the channel's.
    let elsewhere = |name: &str| {
        name.starts_with("VIRTIO_") || name.starts_with("TMEM_CODEC_") || name.ends_with("_MASK")
    };
    assert_eq!(constants.keys().filter(|n| !elsewhere(n)).count(), ours.len());
    let layout = &all["layout"];
    assert_eq!(layout["tmem_request"], REQUEST_SIZE);
    assert_eq!(layout["tmem_item"], ITEM_SIZE);
    assert_eq!(layout["tmem_reply"], REPLY_SIZE);
    assert_eq!(layout["tmem_frame"], frame::FRAME_SIZE);
}

#[test]
fn a_stream_that_ended_stays_so() {
    let mut reader = FrameReader::new(Side::Guest);
    let mut sync: &[u8] = b"0tms\x10\0\0\0................notaframe.";
    assert!(reader.next(&mut sync).unwrap().is_some());
    assert!(reader.in_step());
    let bad = reader.next(&mut sync).unwrap_err();
    let mut good: &[u8] = b"0tms\x10\0\0\0................";
    assert_eq!(reader.next(&mut good), Err(bad));
    assert_eq!(reader.held(), 0);
}
