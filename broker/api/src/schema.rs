//! OpenAPI schemas of values that travel as text.

/// Describes a type that is a string in JSON.
macro_rules! text_schema {
    ($type:ident, $description:literal, $example:literal) => {
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some($description))
                    .examples([$example])
                    .into()
            }
        }

        impl utoipa::ToSchema for $type {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
        }
    };
}

pub(crate) use text_schema;

#[cfg(test)]
mod tests {
    use utoipa::OpenApi;

    use crate::{address_set, binding, card, error, grant, group, health, network, operator, port, topology, volume};

    #[derive(OpenApi)]
    #[openapi(components(schemas(
        binding::BindingView,
        card::CardView,
        card::EnrolRequest,
        card::EnrolResponse,
        error::ErrorBody,
        grant::GrantRequest,
        grant::GrantView,
        address_set::AddressSetView,
        group::GroupView,
        health::Health,
        network::NetworkView,
        operator::OperatorCredentials,
        port::PortView,
        topology::Change,
        topology::Topology,
        volume::VolumeView,
    )))]
    struct Everything;

    #[test]
    fn descriptions_are_for_readers_of_json() {
        let text = Everything::openapi().to_pretty_json().expect("JSON");
        assert!(
            text.contains("\"Backend\": {") && !text.contains("BackendKeys"),
            "{text}"
        );
        assert!(
            text.contains("10.0.0.0/24") && text.contains("4GiB"),
            "examples of values that travel as text"
        );
        let rust_only = text.lines().find(|line| line.contains("[`") || line.contains("::"));
        assert_eq!(rust_only, None, "a link into the Rust documentation");
    }
}
