using System.Text;
using System.Text.Json.Nodes;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Ops;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Checkpointing;

public sealed class CheckpointReaderTests
{
    private static StateSlice Wanted(int tensorIndex, StateKind kind, ScalarType dtype = ScalarType.Float32)
    {
        var (name, shape) = CheckpointSample.Tensors[tensorIndex];
        var block = TensorBlock.Whole(name, shape);
        return new StateSlice(block, kind, 0, block.NumElements, zeros(block.NumElements, dtype: dtype));
    }

    [Fact]
    public void LoadState_WeightsOnlyOtherOptimizerOrOtherDType_OneSentenceEach()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        using (var weightsOnly = new CheckpointReader(CheckpointSample.Save(store, 1, withState: false)))
        {
            var exception = Assert.Throws<ConfigException>(() => weightsOnly.LoadState([Wanted(0, StateKind.Master)]));
            Assert.Contains("--finetune true or --no_load_optim true", Assert.Single(exception.Errors).Message);
            weightsOnly.LoadState([]);
        }
        using var reader = new CheckpointReader(CheckpointSample.Save(store, 2));
        var errors = Assert.Throws<ConfigException>(() => reader.LoadState([Wanted(0, StateKind.Momentum), Wanted(2, StateKind.ExpAvg, ScalarType.BFloat16), Wanted(0, StateKind.Master)])).Errors;
        Assert.Equal(["CKPT031", "CKPT032"], errors.Select(error => error.Code).Distinct());
        var other = new StateSlice(TensorBlock.Whole("model.norm.weight", 8), StateKind.Master, 0, 8, zeros(8));
        Assert.Contains("[4] instead of [8]", Assert.Throws<ConfigException>(() => reader.LoadState([other])).Message);
    }

    [Fact]
    public void CheckModel_Differences_AreAllListed()
    {
        using var folder = new TemporaryFolder();
        using var reader = new CheckpointReader(CheckpointSample.Save(new CheckpointStore(folder.Root, TimeProvider.System), 1));
        reader.CheckModel(new Dictionary<string, string> { ["hiddenSize"] = "4", ["numLayers"] = "1" });
        var errors = Assert.Throws<ConfigException>(() => reader.CheckModel(new Dictionary<string, string> { ["hiddenSize"] = "8", ["vocab"] = "3" })).Errors;
        Assert.Equal(3, errors.Count);
        Assert.All(errors, error => Assert.Equal("CKPT040", error.Code));
    }

    [Fact]
    public void ConfigFacts_OfModelConfig_NamesEveryValue()
    {
        var facts = ConfigFacts.Of(new RotaryConfig { Base = 1e6, ScalingType = "yarn" });
        Assert.Equal("yarn", facts["scalingType"]);
        Assert.Equal("1000000", facts["base"]);
        Assert.False(facts.ContainsKey("attentionFactor"));
        Assert.Equal(32, ConfigFacts.Hash(facts).Length);
    }

    [Fact]
    public void Find_WhatLoadNames_IsFoundOrRefusedInOneSentence()
    {
        using var folder = new TemporaryFolder();
        string Code(string path) => Assert.Throws<ConfigException>(() => CheckpointLocator.Find(path, CheckpointVerification.Full, TimeProvider.System)).Errors[0].Code;
        CheckpointSearch Find(string path) => CheckpointLocator.Find(path, CheckpointVerification.Full, TimeProvider.System);
        Assert.Equal("CKPT001", Code(folder.Combine("none")));
        Assert.Null(Find(folder.Root).Found);
        Assert.Contains("--exit_on_missing_checkpoint false", CheckpointLocator.Missing(folder.Root).Message);
        Assert.Equal("CKPT002", Code(Repository.Asset("golden", "qwen3-dense")));

        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        var first = CheckpointSample.Save(store, 10);
        var second = CheckpointSample.Save(store, 20);
        File.WriteAllText(folder.Combine("latest_checkpointed_iteration.txt"), "999");
        Assert.Equal(second.Folder, Find(folder.Root + "/").Found?.Folder);
        Assert.Equal(first.Folder, Find(first.Folder).Found?.Folder);
        foreach (var saved in new[] { first, second }) File.WriteAllText(Path.Combine(saved.Folder, "manifest.json"), "torn");
        Assert.Equal("CKPT003", Code(folder.Root));
        Assert.Equal("CKPT010", Code(second.Folder));
        File.Delete(Path.Combine(second.Folder, "manifest.json"));
        File.WriteAllText(Path.Combine(second.Folder, "__0_0.distcp"), "");
        Assert.Equal("CKPT002", Code(folder.Root));
    }

    [Fact]
    public void Parse_EditedManifests_AreRefused()
    {
        using var folder = new TemporaryFolder();
        var sound = CheckpointSample.Save(new CheckpointStore(folder.Root, TimeProvider.System), 1, ranks: 2).Manifest.ToJson();
        CheckpointManifest.Parse(sound, "sound");
        Refused(sound, "CKPT011", json => json["formatVersion"] = 2);
        Refused(sound, "CKPT010", json => json["unknown"] = 1);
        Refused(sound, "CKPT010", json => json.Remove("files"));
        Refused(sound, "CKPT010", json => json["files"] = null);
        Refused(sound, "CKPT010", json => json["run"]!["trainer"]!["iteration"] = "1");
        Refused(sound, "CKPT012", json => json["files"]![0] = null);
        Refused(sound, "CKPT012", json => json["state"]![0]!["slices"]![0] = null);
        Refused(sound, "CKPT012", json => json["run"]!["modelConfig"]!["hiddenSize"] = null);
        Refused(sound, "CKPT012", json => json["run"]!["modelConfig"]!["hiddenSize"] = "5");
        Refused(sound, "CKPT012", json => json["run"]!["trainer"]!["iteration"] = -1);
        Refused(sound, "CKPT012", json => json["files"]![0]!["sizeBytes"] = -1);
        Refused(sound, "CKPT012", json => json["files"]![0]!["xxHash128"] = "00");
        foreach (var name in new[] { "../model.safetensors", "/etc/passwd", "state/../x", "state/", "", "a/b", ".hidden", "a\\b", "x\0", "manifest.json", "state/a/b", "unknown.safetensors" })
            Refused(sound, "CKPT012", json => json["files"]![0]!["name"] = name);
        Refused(sound, "CKPT012", json => json["tensors"]![0]!["file"] = "other.safetensors");
        Refused(sound, "CKPT012", json => json["tensors"]![0]!["shape"]![0] = -1);
        Refused(sound, "CKPT012", json => json["tensors"]![0]!["shape"] = new JsonArray(1L << 40, 1L << 40, 1L << 40));
        Refused(sound, "CKPT012", json => json["tensors"]![1]!["name"] = json["tensors"]![0]!["name"]!.GetValue<string>());
        Refused(sound, "CKPT012", json => json["files"]!.AsArray().Add(json["files"]![0]!.DeepClone()));
        Refused(sound, "CKPT013", json => json["state"]!.AsArray().RemoveAt(0));
        Refused(sound, "CKPT013", json => json["state"]![0]!["slices"]!.AsArray().RemoveAt(0));
        Refused(sound, "CKPT013", json => json["state"]![0]!["slices"]![0]!["begin"] = long.MaxValue);
        Refused(sound, "CKPT013", json => json["state"]![0]!["slices"]![0]!["end"] = -1);
        Refused(sound, "CKPT013", json => json["state"]![0]!["slices"]![0]!["offset"] = new JsonArray(long.MaxValue, long.MaxValue));
        Refused(sound, "CKPT013", json => json["state"]![0]!["slices"]![0]!["tensor"] = "none");
        Refused(sound, "CKPT010", json => json["state"]![0]!["slices"]![0]!["kind"] = "weights");
        Refused(sound, "CKPT010", json => json["state"]![0]!["slices"]![0]!["kind"] = 1);
        foreach (var text in new[] { "", "{", "null", "[]", "{\"formatVersion\":1}", "\ufeff{}", "{\"formatVersion\":1,\"formatVersion\":1}" })
        {
            Assert.Throws<ConfigException>(() => CheckpointManifest.Parse(Encoding.UTF8.GetBytes(text), "edited"));
            Assert.Throws<ConfigException>(() => CheckpointManifest.Parse(CheckpointManifest.Seal([.. Encoding.UTF8.GetBytes(text), (byte)'}']), "edited"));
        }
    }

    private static void Refused(byte[] sound, string code, Action<JsonObject> edit)
    {
        var json = JsonNode.Parse(sound)!.AsObject();
        json.Remove("manifestHash");
        edit(json);
        var exception = Assert.Throws<ConfigException>(() => CheckpointManifest.Parse(CheckpointManifest.Seal(Encoding.UTF8.GetBytes(json.ToJsonString())), "edited"));
        Assert.All(exception.Errors, error => Assert.Equal(code, error.Code));
    }
}
