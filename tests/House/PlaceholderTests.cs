namespace Megatron.House.Tests;

public sealed class PlaceholderTests { [Fact] public void Placeholder() => Assert.NotEmpty(Megatron.Testing.Repository.Root); }
