using Megatron.Compute.Training;
using Megatron.Compute.Training.Snapshots;

namespace Megatron.Grains.Wire;

[GenerateSerializer]
internal struct SnapshotHoldingSurrogate
{
    [Id(0)] public int Attempt;
    [Id(1)] public long Iteration;
    [Id(2)] public int WorldSize;
    [Id(3)] public int[] Ranks;
}

[RegisterConverter]
internal sealed class SnapshotHoldingConverter : IConverter<SnapshotHolding, SnapshotHoldingSurrogate>
{
    public SnapshotHolding ConvertFromSurrogate(in SnapshotHoldingSurrogate s) => new(s.Attempt, s.Iteration, s.WorldSize, s.Ranks);

    public SnapshotHoldingSurrogate ConvertToSurrogate(in SnapshotHolding v) =>
        new() { Attempt = v.Attempt, Iteration = v.Iteration, WorldSize = v.WorldSize, Ranks = [.. v.Ranks] };
}

[GenerateSerializer]
internal struct SnapshotOrderSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int FromAttempt;
    [Id(2)] public long Iteration;
    [Id(3)] public int[] Ranks;
}

[RegisterConverter]
internal sealed class SnapshotOrderConverter : IConverter<SnapshotOrder, SnapshotOrderSurrogate>
{
    public SnapshotOrder ConvertFromSurrogate(in SnapshotOrderSurrogate s) => new(s.Attempt, s.FromAttempt, s.Iteration, s.Ranks);

    public SnapshotOrderSurrogate ConvertToSurrogate(in SnapshotOrder v) =>
        new() { Attempt = v.Attempt, FromAttempt = v.FromAttempt, Iteration = v.Iteration, Ranks = [.. v.Ranks] };
}
