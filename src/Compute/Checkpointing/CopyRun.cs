namespace Megatron.Compute.Checkpointing;

/// <summary>Consecutive elements that go from one flat range to another.</summary>
/// <param name="Source">First element, counted from the start of the source range.</param>
/// <param name="Destination">First element, counted from the start of the destination range.</param>
/// <param name="Count">Elements.</param>
public readonly record struct CopyRun(long Source, long Destination, long Count);
