using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>Which of the ranks that hold the same values speaks for them, and whole tensors put together from the ranks' blocks.</summary>
public static class Replicas
{
    /// <summary>
    /// True on exactly one of the ranks that hold a weight: not a copy of a tied one, the first data-parallel replica, and the first rank of
    /// the tensor-parallel group unless the weight is split over it.
    /// </summary>
    public static bool SpeaksForWeight(Parameter parameter, ParallelState parallel) =>
        !parameter.Traits.IsSharedDuplicate && ReplicasOf(parameter, parallel).Rank == 0 && IsFirstInTensorGroup(parameter, parallel);

    /// <summary>
    /// A whole Hugging Face tensor on every rank, from the blocks of all: each rank that speaks for a block adds it to zeros, the world sums.
    /// For verification; all ranks call it with the same tensors in the same order.
    /// </summary>
    /// <param name="parameters">This rank's parameters.</param>
    /// <param name="select">The values of a parameter: data or main gradient.</param>
    /// <returns>fp32 in the dispose scope that is open.</returns>
    public static Tensor Gather(
        string name, long[] shape, IReadOnlyList<Parameter> parameters, Func<Parameter, Tensor> select, ParallelState parallel, Device device)
    {
        using var scope = NewDisposeScope();
        var whole = zeros(shape, dtype: float32, device: device);
        foreach (var parameter in parameters)
        {
            if (!SpeaksForWeight(parameter, parallel)) continue;
            foreach (var block in parameter.Blocks)
            {
                if (block.Name != name) continue;
                var target = whole.alias();
                for (var dim = 0; dim < shape.Length; dim++) target = target.narrow(dim, block.Offset[dim], block.Shape[dim]);
                target.copy_(select(parameter).reshape(-1).narrow(0, block.FlatOffset, block.NumElements).view(block.Shape));
            }
        }
        parallel.World.AllReduce(whole, ReduceOp.Sum).Wait();
        return whole.MoveToOuterDisposeScope();
    }

    internal static ProcessGroup ReplicasOf(Parameter parameter, ParallelState parallel) =>
        parameter.Traits.IsExpert ? parallel.ExpertDataParallel : parallel.DataContextParallel;

    internal static bool IsFirstInTensorGroup(Parameter parameter, ParallelState parallel)
    {
        if (parameter.Traits.IsTensorSharded) return true;
        return (parameter.Traits.IsExpert ? parallel.ExpertTensorParallel : parallel.TensorParallel).Rank == 0;
    }
}
