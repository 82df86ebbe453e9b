using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>
/// Where each parameter lies in this rank's flat buffers (model weights, main gradients, masters, moments: all in one order). First the
/// dense parameters, then those of experts, because they are reduced over different groups; inside each section first the decayed
/// tensors, so that each optimizer group is one contiguous range. A pure function of the parameter list and two group sizes.
/// </summary>
/// <remarks>
/// Every parameter starts at a multiple of <see cref="Alignment"/> elements (cuBLAS and vector loads want 16-byte starts in every dtype),
/// and each section's length is a multiple of alignment × replicas, so that it splits evenly among them. Gaps hold zeros.
/// </remarks>
public sealed class FlatLayout
{
    /// <summary>Elements to which parameter starts are rounded up.</summary>
    public const int Alignment = 64;

    /// <summary>Parameters in buffer order.</summary>
    public IReadOnlyList<FlatEntry> Entries { get; }

    /// <summary>The dense section, then the expert section if the model has one.</summary>
    public IReadOnlyList<FlatSection> Sections { get; }

    /// <summary>Elements of each flat buffer, gaps included.</summary>
    public long NumElements { get; }

    private FlatLayout(IReadOnlyList<FlatEntry> entries, IReadOnlyList<FlatSection> sections)
    {
        (Entries, Sections) = (entries, sections);
        NumElements = sections.Count == 0 ? 0 : sections[^1].Range.End;
    }

    /// <summary>Lays out <paramref name="parameters"/>; the given order is kept inside each group.</summary>
    public static FlatLayout Create(IReadOnlyList<Parameter> parameters, ParallelState parallel)
    {
        var entries = new List<FlatEntry>(parameters.Count);
        var sections = new List<FlatSection>(2);
        var next = 0L;
        foreach (var isExpert in (bool[])[false, true])
        {
            var members = parameters.Where(parameter => parameter.Traits.IsExpert == isExpert).ToArray();
            if (members.Length == 0) continue;
            var replicas = isExpert ? parallel.ExpertDataParallel : parallel.DataContextParallel;
            var begin = next;
            next = Append(entries, members.Where(parameter => parameter.Traits.Decays), next);
            var endOfDecayed = next;
            next = Append(entries, members.Where(parameter => !parameter.Traits.Decays), next);
            var end = begin + RoundUp(next - begin, (long)Alignment * replicas.Size);
            sections.Add(new FlatSection(isExpert, new FlatRange(begin, end), new FlatRange(begin, endOfDecayed), replicas));
            next = end;
        }
        return new FlatLayout(entries, sections);
    }

    /// <summary>
    /// Allocates the fp32 main gradients in this layout, all zero, and points every parameter's <see cref="Parameter.GradientSlot"/> at its
    /// place.
    /// </summary>
    /// <param name="numLogicalShards">Accumulators (DESIGN D12), 1 unless <c>--logical_data_shards</c> asks for more.</param>
    public GradientBuffer CreateGradientBuffer(Device device, int numLogicalShards)
    {
        var places = Entries.Select(entry => new GradientPlace(entry.Range.Begin, entry.Parameter.Shape)).ToArray();
        var buffer = new GradientBuffer(places, NumElements, device, numLogicalShards);
        for (var i = 0; i < Entries.Count; i++) Entries[i].Parameter.GradientSlot = buffer.Slots[i];
        return buffer;
    }

    private static long Append(List<FlatEntry> entries, IEnumerable<Parameter> parameters, long next)
    {
        foreach (var parameter in parameters)
        {
            entries.Add(new FlatEntry(parameter, new FlatRange(next, next + parameter.NumElements)));
            next = RoundUp(next + parameter.NumElements, Alignment);
        }
        return next;
    }

    private static long RoundUp(long value, long multiple) => (value + multiple - 1) / multiple * multiple;
}

/// <summary>One parameter's elements in the flat buffers.</summary>
public sealed record FlatEntry(Parameter Parameter, FlatRange Range);

/// <summary>A part of the flat buffers whose parameters are reduced over the same ranks.</summary>
/// <param name="IsExpert">Holds expert parameters.</param>
/// <param name="Range">Elements of the section; its length is a multiple of the replicas.</param>
/// <param name="Decayed">Elements to which weight decay applies: the start of the section.</param>
/// <param name="Replicas">Ranks that hold the same parameters and reduce their gradients.</param>
public sealed record FlatSection(bool IsExpert, FlatRange Range, FlatRange Decayed, ProcessGroup Replicas)
{
    /// <summary>The part that replica <paramref name="rank"/> updates when the optimizer is sharded (ZeRO-1, arXiv 1910.02054).</summary>
    public FlatRange ShardOf(int rank)
    {
        var length = Range.Length / Replicas.Size;
        return new FlatRange(Range.Begin + rank * length, Range.Begin + (rank + 1) * length);
    }
}
