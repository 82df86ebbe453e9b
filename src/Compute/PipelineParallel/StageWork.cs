using System.Globalization;
using Megatron.Compute.Models;

namespace Megatron.Compute.PipelineParallel;

/// <summary>What the ranks of one pipeline stage have to do: which layers they own and by which schedule they run them.</summary>
/// <param name="Chunks">The model chunks of the stage, index = chunk.</param>
/// <param name="Schedule">The same for all stages of a job.</param>
public sealed record StageWork(IReadOnlyList<StageLayout> Chunks, PipelineScheduleKind Schedule)
{
    /// <summary>The layers, first and last of each chunk: <c>0-3</c>, or <c>0-1, 4-5</c> when there are two.</summary>
    public string Layers => string.Join(", ", Chunks.Select(chunk => string.Create(CultureInfo.InvariantCulture, $"{chunk.FirstLayer}-{chunk.EndLayer - 1}")));

    /// <inheritdoc/>
    public bool Equals(StageWork? other) => other is not null && Schedule == other.Schedule && Chunks.SequenceEqual(other.Chunks);

    /// <inheritdoc/>
    public override int GetHashCode() => HashCode.Combine(Schedule, Chunks.Count);
}
