using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing.Mcore;

/// <summary>A class or function that a pickle names. Only a name: nothing is ever looked up or called.</summary>
internal sealed record PickleTarget(string Module, string Name)
{
    public override string ToString() => $"{Module}.{Name}";
}

/// <summary>An object that a pickle makes: what it is made from, and the state it is given afterwards.</summary>
internal sealed class PickleObject(PickleTarget target, object?[] arguments)
{
    public PickleTarget Target { get; } = target;

    public object?[] Arguments { get; } = arguments;

    /// <summary>Argument of the BUILD instruction; null without one.</summary>
    public object? State { get; set; }

    /// <summary>Pairs that were set on it, for dictionary types.</summary>
    public PickleDictionary Items { get; } = new();
}

/// <summary>A dictionary in the order it was written; keys are never hashed.</summary>
internal sealed class PickleDictionary
{
    public List<(object? Key, object? Value)> Pairs { get; } = [];

    /// <summary>Value of a text key, the last one written; null when there is none.</summary>
    public object? this[string key] => Pairs.FindLast(pair => pair.Key is string text && text == key).Value;
}

/// <summary>A persistent id: how torch.save refers to a storage.</summary>
internal sealed record PicklePersistent(object? Id);

/// <summary>
/// Reads pickles (protocols 2 to 5) as plain data: numbers, texts, lists, tuples (arrays), dictionaries, and objects of known names kept as name
/// and arguments. Nothing is constructed but these records; a name outside the list that is given, and every instruction that has no place in
/// data, is refused.
/// </summary>
internal ref struct PickleReader
{
    private const int DepthMax = 1 << 20;

    private readonly ReadOnlySpan<byte> bytes;
    private readonly IReadOnlySet<string> known;
    private readonly string source;
    private readonly List<object?> stack = [];
    private readonly List<int> marks = [];
    private readonly Dictionary<long, object?> memo = [];
    private int position;

    private PickleReader(ReadOnlySpan<byte> bytes, IReadOnlySet<string> known, string source)
    {
        this.bytes = bytes;
        this.known = known;
        this.source = source;
    }

    /// <summary>Reads one pickle.</summary>
    /// <param name="bytes">The file; what follows the end of the pickle is refused.</param>
    /// <param name="known">Names it may use, as <c>module.name</c>.</param>
    /// <param name="source">Named in error messages.</param>
    /// <exception cref="ConfigException">MCORE002 not a pickle of data; MCORE003 it names something else.</exception>
    public static object? Read(ReadOnlySpan<byte> bytes, IReadOnlySet<string> known, string source) => new PickleReader(bytes, known, source).Run();

    private object? Run()
    {
        while (true)
        {
            var code = Take(1)[0];
            if (code == (byte)'.')
            {
                if (stack.Count != 1 || marks.Count != 0) throw Damaged("it ends in the middle of a value");
                if (position != bytes.Length) throw Damaged($"{bytes.Length - position} bytes follow its end");
                return stack[0];
            }
            Execute(code);
            if (stack.Count > DepthMax || marks.Count > DepthMax) throw Damaged("it is nested too deeply");
        }
    }

    private void Execute(byte code)
    {
        switch ((char)code)
        {
            case '\u0080': ReadProtocol(); break;
            case '\u0095': _ = TakeLong(8); break;
            case '(': marks.Add(stack.Count); break;
            case '0': Pop(); break;
            case '1': PopMark(); break;
            case 'N': stack.Add(null); break;
            case '\u0088': stack.Add(true); break;
            case '\u0089': stack.Add(false); break;
            case 'J': stack.Add((long)BinaryPrimitives.ReadInt32LittleEndian(Take(4))); break;
            case 'K': stack.Add((long)Take(1)[0]); break;
            case 'M': stack.Add((long)BinaryPrimitives.ReadUInt16LittleEndian(Take(2))); break;
            case '\u008a': stack.Add(TakeInteger()); break;
            case 'G': stack.Add(BinaryPrimitives.ReadDoubleBigEndian(Take(8))); break;
            case '\u008c': stack.Add(TakeText(Take(1)[0])); break;
            case 'X': stack.Add(TakeText(TakeLong(4))); break;
            case '\u008d': stack.Add(TakeText(TakeLong(8))); break;
            case 'C': stack.Add(Take(Take(1)[0]).ToArray()); break;
            case 'B': stack.Add(Take(TakeLong(4)).ToArray()); break;
            case ']': stack.Add(new List<object?>()); break;
            case ')': stack.Add(Array.Empty<object?>()); break;
            case '}': stack.Add(new PickleDictionary()); break;
            case 'a': Append([Pop()]); break;
            case 'e': Append(PopMark()); break;
            case 't': stack.Add(PopMark()); break;
            case '\u0085': stack.Add(PopMany(1)); break;
            case '\u0086': stack.Add(PopMany(2)); break;
            case '\u0087': stack.Add(PopMany(3)); break;
            case 's': SetItems(PopMany(2)); break;
            case 'u': SetItems(PopMark()); break;
            case 'h': stack.Add(Recall(Take(1)[0])); break;
            case 'j': stack.Add(Recall(TakeLong(4))); break;
            case 'q': memo[Take(1)[0]] = Top(); break;
            case 'r': memo[TakeLong(4)] = Top(); break;
            case '\u0094': memo[memo.Count] = Top(); break;
            case 'c': stack.Add(MakeTarget(TakeLine(), TakeLine())); break;
            case '\u0093': ReadStackTarget(); break;
            case 'R' or '\u0081': MakeObject(); break;
            case 'b': Build(); break;
            case 'Q': stack.Add(new PicklePersistent(Pop())); break;
            default: throw Damaged(string.Create(CultureInfo.InvariantCulture, $"it has the instruction 0x{code:x2}, which data do not need"));
        }
    }

    private void ReadProtocol()
    {
        var protocol = Take(1)[0];
        if (protocol is < 2 or > 5) throw Damaged(string.Create(CultureInfo.InvariantCulture, $"it has protocol {protocol}; 2 to 5 are read"));
    }

    private void ReadStackTarget()
    {
        var names = PopMany(2);
        if (names is not [string module, string name]) throw Damaged("a name is no text");
        stack.Add(MakeTarget(module, name));
    }

    private readonly PickleTarget MakeTarget(string module, string name)
    {
        var target = new PickleTarget(module, name);
        if (known.Contains(target.ToString())) return target;
        throw new ConfigException("MCORE003", $"{source} names {Printable.Quote(target.ToString())}, which is no part of a checkpoint of weights; nothing was run, do not trust this file.");
    }

    private void MakeObject()
    {
        var pair = PopMany(2);
        if (pair is not [PickleTarget target, object?[] arguments]) throw Damaged("an object is made from something that is no known name");
        stack.Add(new PickleObject(target, arguments));
    }

    private void Build()
    {
        var state = Pop();
        if (Top() is not PickleObject made) throw Damaged("a state is given to something that is no object");
        if (made.State is not null) throw Damaged("an object is given two states");
        made.State = state;
    }

    private void Append(object?[] items)
    {
        if (Top() is not List<object?> list) throw Damaged("an item is added to something that is no list");
        list.AddRange(items);
    }

    private void SetItems(object?[] items)
    {
        var pairs = Top() switch
        {
            PickleDictionary dictionary => dictionary.Pairs,
            PickleObject { Target.Name: "OrderedDict" } made => made.Items.Pairs,
            _ => throw Damaged("a pair is added to something that is no dictionary"),
        };
        if (items.Length % 2 != 0) throw Damaged("a key has no value");
        for (var i = 0; i < items.Length; i += 2) pairs.Add((items[i], items[i + 1]));
    }

    private readonly object? Recall(long index) => memo.TryGetValue(index, out var value) ? value : throw Damaged("it refers to a value that it does not have");

    private readonly object? Top() => stack.Count > Floor() ? stack[^1] : throw Damaged("a value is missing");

    private object? Pop()
    {
        var value = Top();
        stack.RemoveAt(stack.Count - 1);
        return value;
    }

    private object?[] PopMany(int count)
    {
        if (stack.Count - count < Floor()) throw Damaged("a value is missing");
        object?[] values = [.. stack[^count..]];
        stack.RemoveRange(stack.Count - count, count);
        return values;
    }

    private object?[] PopMark()
    {
        if (marks.Count == 0) throw Damaged("a mark is missing");
        var floor = marks[^1];
        object?[] values = [.. stack[floor..]];
        stack.RemoveRange(floor, stack.Count - floor);
        marks.RemoveAt(marks.Count - 1);
        return values;
    }

    private readonly int Floor() => marks.Count == 0 ? 0 : marks[^1];

    private long TakeInteger()
    {
        var length = Take(1)[0];
        if (length > 8) throw Damaged("it has an integer of more than 64 bits");
        var digits = Take(length);
        long value = length > 0 && (digits[^1] & 0x80) != 0 ? -1 : 0;
        for (var i = length - 1; i >= 0; i--) value = (value << 8) | digits[i];
        return value;
    }

    private long TakeLong(int length) => length == 4 ? BinaryPrimitives.ReadUInt32LittleEndian(Take(4)) : BinaryPrimitives.ReadInt64LittleEndian(Take(8));

    private string TakeText(long length)
    {
        var text = Take(length);
        if (!System.Text.Unicode.Utf8.IsValid(text)) throw Damaged("a text is not UTF-8");
        return Encoding.UTF8.GetString(text);
    }

    private string TakeLine()
    {
        var length = bytes[position..].IndexOf((byte)'\n');
        if (length is < 0 or > 1000) throw Damaged("a name does not end");
        var line = TakeText(length);
        position++;
        return line;
    }

    private ReadOnlySpan<byte> Take(long length)
    {
        if (length < 0 || length > bytes.Length - position) throw Damaged("it is cut off");
        var taken = bytes.Slice(position, (int)length);
        position += (int)length;
        return taken;
    }

    private readonly ConfigException Damaged(string what) =>
        new("MCORE002", string.Create(CultureInfo.InvariantCulture, $"{source}, byte {position}: {what}; the file is damaged or no checkpoint of Megatron-LM."));
}
