using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;

namespace Megatron.Compute.Training;

/// <summary>
/// Which rank writes what into a checkpoint: what several data-parallel replicas hold alike is dealt out over them, the largest parameter first to
/// the replica that has least, so that all write at the same time. A pure function of the parameters; nothing is communicated.
/// </summary>
public sealed class ReplicaShares
{
    private readonly ParallelState parallel;
    private readonly Dictionary<Parameter, int> writerOf = [];

    /// <param name="parameters">This rank's parameters; the same on all replicas.</param>
    public ReplicaShares(IReadOnlyList<Parameter> parameters, ParallelState parallel)
    {
        this.parallel = parallel;
        var written = parameters.Where(parameter => !parameter.Traits.IsSharedDuplicate).ToList();
        Deal([.. written.Where(parameter => !parameter.Traits.IsExpert)]);
        Deal([.. written.Where(parameter => parameter.Traits.IsExpert)]);
    }

    /// <summary>True on exactly one of the ranks that hold a weight, and never for the copy of a tied one.</summary>
    public bool WritesWeight(Parameter parameter) => WritesState(parameter, isSharded: false);

    /// <summary>The same for optimizer state; each replica of a sharded optimizer writes the ranges that it owns.</summary>
    public bool WritesState(Parameter parameter, bool isSharded) =>
        !parameter.Traits.IsSharedDuplicate && Replicas.IsFirstInTensorGroup(parameter, parallel)
        && (isSharded || writerOf[parameter] == Replicas.ReplicasOf(parameter, parallel).Rank);

    private void Deal(IReadOnlyList<Parameter> parameters)
    {
        if (parameters.Count == 0) return;
        var loads = new long[Replicas.ReplicasOf(parameters[0], parallel).Size];
        foreach (var parameter in parameters.OrderByDescending(parameter => parameter.NumElements))
        {
            var writer = Array.IndexOf(loads, loads.Min());
            writerOf[parameter] = writer;
            loads[writer] += parameter.NumElements;
        }
    }
}
