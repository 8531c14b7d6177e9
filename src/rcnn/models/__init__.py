"""The networks: modules whose forward is inference, without targets and losses."""
