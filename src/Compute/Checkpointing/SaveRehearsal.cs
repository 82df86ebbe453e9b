using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// Writes, commits and deletes a checkpoint of one number beside the first steps. The code of a save is compiled then, a third of a second of one core,
/// and not in the background of the steps that follow the first save.
/// </summary>
internal static class SaveRehearsal
{
    private const string SaveId = "rehearsal";

    private static int hasRun;

    /// <summary>Rehearses once in a process; throws nothing. What fails is left for the first save to tell.</summary>
    /// <param name="store">A store of its own in a folder that nobody else uses; the folder is deleted.</param>
    /// <param name="facts">What a save of the run would state.</param>
    public static void Run(CheckpointStore store, RunFacts facts)
    {
        if (Interlocked.Exchange(ref hasRun, 1) == 1) return;
        try
        {
            Save(store, facts);
            Directory.Delete(store.Root, recursive: true);
        }
        catch (Exception)
        {
            // Nothing is lost; what is left of the folder is garbage of this attempt.
        }
    }

    private static void Save(CheckpointStore store, RunFacts facts)
    {
        using var value = zeros(1);
        var block = TensorBlock.Whole(SaveId, 1);
        var content = new RankContent
        {
            ModelPlan = HfShardPlan.Make([new SafetensorsSpec(SaveId, TensorBytes.ToSafetensors(value.dtype), [1])], 1),
            Weights = [new WeightBlock(block, value)],
            State = [new StateSlice(block, StateKind.Master, 0, 1, value)],
            SideFiles = new HfSideFiles { Config = "{}"u8.ToArray() },
        };
        var part = CheckpointWriter.WriteRank(store.BeginSave(facts.Attempt, SaveId, 0), 0, content);
        store.Commit(SaveId, facts, [part]);
        store.Prune(1, CheckpointVerification.Sizes);
    }
}
