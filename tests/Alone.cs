// Compiled into each test project (tests/Directory.Build.props): the runner looks for collections in the assembly of the tests only.

namespace Megatron.Testing;

/// <summary>
/// Tests that compare a time or a peak of memory with a bound, or change something that the whole process shares: they run one by one, after all
/// others, which run beside each other.
/// </summary>
[CollectionDefinition(DisableParallelization = true)]
public sealed class Alone;
